//! `BPF_PROG_TEST_RUN` for socket buffers.
//!
//! Not by aya's wrapper: that one does not let a frame arrive as `CHECKSUM_COMPLETE`.
#![allow(unsafe_code, reason = "one system call")]

use std::os::fd::{AsRawFd as _, BorrowedFd};

use anyhow::{Result, bail};

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

/// A frame, and how it arrives.
pub(super) struct Frame<'a> {
    /// The bytes.
    pub(super) bytes: &'a [u8],
    /// Index of the interface.
    pub(super) ifindex: u32,
    /// For a GSO packet, the bytes of payload in each of its segments.
    pub(super) segment_bytes: Option<u32>,
    /// Whether hardware has summed it up.
    pub(super) checksum_complete: bool,
}

/// What the program did.
pub(super) struct Answer {
    /// What it returned.
    pub(super) code: u32,
    /// The frame afterwards.
    pub(super) bytes: Vec<u8>,
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

/// Runs a program once.
pub(super) fn run(program: BorrowedFd<'_>, frame: &Frame<'_>) -> Result<Answer> {
    let mut context = [0_u8; CONTEXT_BYTES];
    let mut put = |at: usize, value: u32| context[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    put(IFINDEX_AT, frame.ifindex);
    if let Some(bytes) = frame.segment_bytes {
        put(GSO_SIZE_AT, bytes);
        put(GSO_SEGMENTS_AT, (frame.bytes.len() as u32).div_ceil(bytes));
    }
    let mut output = vec![0; frame.bytes.len() + 64];
    let mut attributes = Attributes {
        prog_fd: program.as_raw_fd() as u32,
        data_size_in: frame.bytes.len() as u32,
        data_size_out: output.len() as u32,
        data_in: frame.bytes.as_ptr() as u64,
        data_out: output.as_mut_ptr() as u64,
        repeat: 1,
        ctx_size_in: CONTEXT_BYTES as u32,
        ctx_in: context.as_ptr() as u64,
        flags: if frame.checksum_complete { BPF_F_TEST_SKB_CHECKSUM_COMPLETE } else { 0 },
        ..Attributes::default()
    };
    let size = size_of::<Attributes>();
    // SAFETY: every pointer in the attributes leads to a live buffer of the length beside it.
    let code =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_TEST_RUN, &raw mut attributes, size) };
    if code < 0 {
        let error = std::io::Error::last_os_error();
        bail!("failed to run a program on {} bytes: {error}", frame.bytes.len());
    }
    output.truncate(attributes.data_size_out as usize);
    Ok(Answer { code: attributes.retval, bytes: output })
}
