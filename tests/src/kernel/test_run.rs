//! `BPF_PROG_TEST_RUN` for socket buffers and XDP buffers.
//!
//! Not by aya's wrapper: that one does not let a frame arrive as `CHECKSUM_COMPLETE`.
#![allow(unsafe_code, reason = "one system call")]

use std::os::fd::{AsRawFd as _, BorrowedFd};

use anyhow::{Result, bail};
use gateway_common::fragment::HELD_BYTES;

/// The command of `bpf(2)`.
const BPF_PROG_TEST_RUN: i32 = 10;

/// Lets the frame arrive as `CHECKSUM_COMPLETE`; the kernel checks afterwards that the sum still
/// holds and answers `EBADMSG` if not. Kernels that do not know the flag answer `EINVAL`.
const BPF_F_TEST_SKB_CHECKSUM_COMPLETE: u32 = 1 << 2;

/// Size of `struct __sk_buff`, and where the fields are that the kernel takes from a caller.
const CONTEXT_BYTES: usize = 192;
const IFINDEX_AT: usize = 40;
const GSO_SEGMENTS_AT: usize = 164;
const GSO_SIZE_AT: usize = 176;

/// Sends what an XDP program makes of a frame on its way, as if it came from a driver.
const BPF_F_TEST_XDP_LIVE_FRAMES: u32 = 1 << 1;

/// Frames that a live run takes through the program before it sends them on.
const BATCH: u32 = 64;
/// Size of `struct xdp_md`, and where the fields are that the kernel takes from a caller.
const XDP_CONTEXT_BYTES: usize = 24;
const XDP_DATA_END_AT: usize = 4;
const XDP_IFINDEX_AT: usize = 12;

/// A frame, and how it arrives.
pub(crate) struct Frame<'a> {
    /// The bytes.
    pub(crate) bytes: &'a [u8],
    /// Index of the interface.
    pub(crate) ifindex: u32,
    /// For a GSO packet, the bytes of payload in each of its segments.
    pub(crate) segment_bytes: Option<u32>,
    /// Whether hardware has summed it up.
    pub(crate) checksum_complete: bool,
}

/// What the program did.
pub(crate) struct Answer {
    /// What it returned.
    pub(crate) code: u32,
    /// The frame afterwards.
    pub(crate) bytes: Vec<u8>,
}

/// The member `test` of `union bpf_attr`.
#[derive(Default)]
#[repr(C)]
struct Attributes {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    padding: u32,
}

/// Runs a TC program once.
pub(crate) fn run(program: BorrowedFd<'_>, frame: &Frame<'_>) -> Result<Answer> {
    repeat(program, frame, 1).map(|(answer, _)| answer)
}

/// Runs a TC program `count` times in a row, each time on what the last run left of the frame. Returns
/// the last answer, and the nanoseconds that a run took.
pub(crate) fn repeat(
    program: BorrowedFd<'_>,
    frame: &Frame<'_>,
    count: u32,
) -> Result<(Answer, u32)> {
    let mut context = [0_u8; CONTEXT_BYTES];
    let mut put = |at: usize, value: u32| context[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    put(IFINDEX_AT, frame.ifindex);
    if let Some(bytes) = frame.segment_bytes {
        put(GSO_SIZE_AT, bytes);
        put(GSO_SEGMENTS_AT, (frame.bytes.len() as u32).div_ceil(bytes));
    }
    run_with(program, frame, &context, count)
}

/// Runs an XDP program `count` times, as [`repeat`] does.
pub(crate) fn repeat_xdp(
    program: BorrowedFd<'_>,
    frame: &Frame<'_>,
    count: u32,
) -> Result<(Answer, u32)> {
    let mut context = [0_u8; XDP_CONTEXT_BYTES];
    let mut put = |at: usize, value: u32| context[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    put(XDP_DATA_END_AT, frame.bytes.len() as u32);
    put(XDP_IFINDEX_AT, frame.ifindex);
    run_with(program, frame, &context, count)
}

fn run_with(
    program: BorrowedFd<'_>,
    frame: &Frame<'_>,
    context: &[u8],
    count: u32,
) -> Result<(Answer, u32)> {
    // A held fragment that comes in again is put together in the frame of the first one.
    let mut output = vec![0; frame.bytes.len().max(HELD_BYTES as usize) + 64];
    let mut attributes = Attributes {
        prog_fd: program.as_raw_fd() as u32,
        data_size_in: frame.bytes.len() as u32,
        data_size_out: output.len() as u32,
        data_in: frame.bytes.as_ptr() as u64,
        data_out: output.as_mut_ptr() as u64,
        repeat: count,
        ctx_size_in: context.len() as u32,
        ctx_in: context.as_ptr() as u64,
        flags: if frame.checksum_complete { BPF_F_TEST_SKB_CHECKSUM_COMPLETE } else { 0 },
        ..Attributes::default()
    };
    call(&mut attributes)?;
    output.truncate(attributes.data_size_out as usize);
    Ok((Answer { code: attributes.retval, bytes: output }, attributes.duration))
}

/// Runs an XDP program on `count` frames of zeros and carries its verdicts out.
pub(crate) fn live(program: BorrowedFd<'_>, frame_bytes: usize, count: u32) -> Result<()> {
    let frame = vec![0_u8; frame_bytes];
    call(&mut Attributes {
        prog_fd: program.as_raw_fd() as u32,
        data_size_in: frame.len() as u32,
        data_in: frame.as_ptr() as u64,
        repeat: count,
        flags: BPF_F_TEST_XDP_LIVE_FRAMES,
        batch_size: BATCH,
        ..Attributes::default()
    })
}

fn call(attributes: &mut Attributes) -> Result<()> {
    let size = size_of::<Attributes>();
    // SAFETY: every pointer in the attributes leads to a live buffer of the length beside it.
    let code = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_PROG_TEST_RUN, std::ptr::from_mut(attributes), size)
    };
    if code < 0 {
        let error = std::io::Error::last_os_error();
        bail!("failed to run a program on {} bytes: {error}", attributes.data_size_in);
    }
    Ok(())
}
