//! All unsafe code of this crate: values of the maps as bytes, many of them at once, a socket address,
//! a thread's priority.
#![allow(unsafe_code, reason = "the door to the kernel")]

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use aya::Pod;
use aya::maps::{MapData, RingBuf};
use gateway_common::family::{Address, Family};
use gateway_common::nexthop::{ChoiceKey, Group, Member, NextHopGroup};
use gateway_common::records::{
    Backend, Config, Counter, Dnat, DnatKey, Draining, Eip, Fip, FipKey, Host, Neighbor, Pool,
    Record, Rule, Session, Slots, XdpFacts,
};
use gateway_common::tuple::Tuple;
use gateway_common::verdict::NextHop;
use nix::libc;
use nix::sys::socket::{LinkAddr, SockaddrLike as _};
use tokio::io::unix::AsyncFd;

/// A record of `gateway-common` as aya wants it.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub(crate) struct Raw<T>(pub(crate) T);

/// Declares that records may be read and written as bytes.
macro_rules! pods {
    ($($single:ty),+; $($family:ident),+) => {
        $(
            // SAFETY: a `Record` is `repr(C)`, without padding, valid for every bit pattern.
            unsafe impl Pod for Raw<$single> {}
            const _: () = is_record::<$single>();
        )+
        $(
            // SAFETY: `V4` and `V6` are the only families, and for both this is a `Record`.
            unsafe impl<F: Family> Pod for Raw<$family<F>> {}
            const _: () = is_record::<$family<gateway_common::family::V4>>();
            const _: () = is_record::<$family<gateway_common::family::V6>>();
        )+
    };
}

const fn is_record<T: Record>() {}

pods!(
    ChoiceKey, Config, Counter, Draining, Eip, Group, Host, Neighbor, Rule, Slots, XdpFacts;
    Backend, Dnat, DnatKey, Fip, FipKey, Member, NextHop, NextHopGroup, Pool, Session, Tuple
);

/// An address as a key, or as part of the key of a longest-prefix trie.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub(crate) struct Octets<A>(pub(crate) A);

// SAFETY: an `Address` is `FromBytes + IntoBytes`: no padding, valid for every bit pattern.
unsafe impl<A: Address + 'static> Pod for Octets<A> {}

/// A session key as the sweep programs take it.
pub(crate) fn key_bytes<F: Family>(key: &Tuple<F>) -> &[u8] {
    // SAFETY: `V4` and `V6` are the only families, and for both this is a `Record`: no padding.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(key).cast(), size_of::<Tuple<F>>()) }
}

/// `bpf(2)`, for commands that aya has no wrapper for.
///
/// # Safety
///
/// The attributes are those of the command, and what they point to is there until it returns.
unsafe fn bpf<T>(command: libc::c_int, attributes: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: the caller's promise; the kernel takes what is missing of `union bpf_attr` for zeros.
    let code = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>())
    };
    if code < 0 { Err(io::Error::last_os_error()) } else { Ok(code) }
}

const BPF_MAP_LOOKUP_BATCH: libc::c_int = 24;

/// The member `batch` of `union bpf_attr`.
#[repr(C)]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Reads entries of a hash map from `position` on, from the beginning without one (kernel 5.6). Returns how
/// many, and the position of the rest unless that was all.
///
/// The buffers must take all entries of a bucket.
pub(crate) fn lookup_batch<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    position: Option<u32>,
    keys: &mut [K],
    values: &mut [V],
) -> io::Result<(usize, Option<u32>)> {
    let (from, mut to) = (position.unwrap_or(0), 0_u32);
    let mut batch = Batch {
        in_batch: position.map_or(0, |_| &raw const from as u64),
        out_batch: &raw mut to as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count: u32::try_from(keys.len().min(values.len())).unwrap_or(u32::MAX),
        map_fd: u32::try_from(map.as_raw_fd()).unwrap_or(u32::MAX),
        elem_flags: 0,
        flags: 0,
    };
    // SAFETY: both buffers take `count` entries, and the positions are live numbers of 32 bits, which is
    // what the kernel uses for hash maps.
    let rest = match unsafe { bpf(BPF_MAP_LOOKUP_BATCH, &mut batch) } {
        Ok(_) => Some(to),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    Ok((batch.count as usize, rest))
}

/// One instruction of BPF.
#[repr(C)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

impl Instruction {
    const fn new(code: u8, immediate: i32) -> Self {
        Self { code, registers: 0, offset: 0, immediate }
    }
}

/// Two programs that return the lower and the higher half of the kernel's tick counter.
///
/// The loaded object would do as well, if it did not have to know the answer to be loaded.
pub(crate) struct JiffyCounter {
    low: OwnedFd,
    high: OwnedFd,
}

impl JiffyCounter {
    /// Loads them (kernel 5.6).
    pub(crate) fn load() -> io::Result<Self> {
        // call bpf_jiffies64; r0 >>= 32; exit
        let call = || Instruction::new(0x85, 118);
        let exit = || Instruction::new(0x95, 0);
        let high = [call(), Instruction::new(0x77, 32), exit()];
        Ok(Self { low: load_filter(&[call(), exit()])?, high: load_filter(&high)? })
    }

    /// The counter.
    pub(crate) fn read(&self) -> io::Result<u64> {
        loop {
            let high = run_filter(self.high.as_fd())?;
            let low = run_filter(self.low.as_fd())?;
            if run_filter(self.high.as_fd())? == high {
                return Ok(u64::from(high) << 32 | u64::from(low));
            }
        }
    }
}

/// Loads a socket filter.
fn load_filter(instructions: &[Instruction]) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Load {
        kind: u32,
        count: u32,
        instructions: u64,
        license: u64,
        log: [u32; 4],
        kernel: u32,
        flags: u32,
    }

    const BPF_PROG_LOAD: libc::c_int = 5;
    const SOCKET_FILTER: u32 = 1;
    let mut load = Load {
        kind: SOCKET_FILTER,
        count: u32::try_from(instructions.len()).unwrap_or(u32::MAX),
        instructions: instructions.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        log: [0; 4],
        kernel: 0,
        flags: 0,
    };
    // SAFETY: instructions and license live until the kernel returns.
    let fd = unsafe { bpf(BPF_PROG_LOAD, &mut load) }?;
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: a descriptor that the kernel has just made for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Runs a socket filter once, on a frame of zeros. Returns what it returned.
fn run_filter(program: BorrowedFd<'_>) -> io::Result<u32> {
    #[repr(C)]
    #[derive(Default)]
    struct Run {
        program: u32,
        returned: u32,
        bytes_in: u32,
        bytes_out: u32,
        data_in: u64,
        data_out: u64,
        repeat: u32,
        duration: u32,
    }

    const BPF_PROG_TEST_RUN: libc::c_int = 10;
    // More than an Ethernet and an IPv6 header, which some kernels ask for.
    let frame = [0_u8; 64];
    let mut run = Run {
        program: u32::try_from(program.as_raw_fd()).unwrap_or(u32::MAX),
        bytes_in: 64,
        data_in: frame.as_ptr() as u64,
        repeat: 1,
        ..Run::default()
    };
    // SAFETY: the frame lives until the kernel returns, which writes to `run` alone.
    unsafe { bpf(BPF_PROG_TEST_RUN, &mut run) }?;
    Ok(run.returned)
}

/// The ids of the programs at the TCX ingress of an interface.
///
/// aya looks at each of the programs, too, which takes CAP_SYS_ADMIN.
///
/// # Errors
///
/// When there is no such interface, or the kernel has no TCX.
pub(crate) fn tcx_ingress(ifindex: u32) -> io::Result<Vec<u32>> {
    #[repr(C)]
    #[derive(Default)]
    struct Query {
        ifindex: u32,
        attach_type: u32,
        flags: u32,
        attach_flags: u32,
        programs: u64,
        count: u32,
        zero: u32,
        program_flags: u64,
        links: u64,
        link_flags: u64,
        revision: u64,
    }

    const BPF_PROG_QUERY: libc::c_int = 16;
    const BPF_TCX_INGRESS: u32 = 46;
    // What an interface takes at most.
    let mut programs = vec![0_u32; 64];
    let mut query = Query {
        ifindex,
        attach_type: BPF_TCX_INGRESS,
        programs: programs.as_mut_ptr() as u64,
        count: 64,
        ..Query::default()
    };
    // SAFETY: `programs` takes `count` ids, and lives until the kernel returns.
    unsafe { bpf(BPF_PROG_QUERY, &mut query) }?;
    programs.truncate(query.count as usize);
    Ok(programs)
}

/// The link-layer address `mac` on interface `ifindex`, for frames of `ether_type`.
pub(crate) fn link_address(ifindex: u32, ether_type: u16, mac: [u8; 6]) -> Option<LinkAddr> {
    let mut octets = [0; 8];
    octets[..6].copy_from_slice(&mac);
    let address = libc::sockaddr_ll {
        sll_family: u16::try_from(libc::AF_PACKET).ok()?,
        sll_protocol: ether_type.to_be(),
        sll_ifindex: i32::try_from(ifindex).ok()?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: octets,
    };
    let length = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>()).ok()?;
    // SAFETY: the pointer leads to a whole `sockaddr_ll` whose family says so.
    unsafe { LinkAddr::from_raw((&raw const address).cast(), Some(length)) }
}

/// A ring buffer that tasks can wait for.
pub(crate) fn wait_for(ring: RingBuf<MapData>) -> io::Result<AsyncFd<RingBuf<MapData>>> {
    // SAFETY: the ring buffer owns its descriptor and hands out the same one until it is dropped.
    Ok(unsafe { AsyncFd::register(ring) }?)
}

/// Gives the calling thread the largest share of the processor, if the privilege is there. For
/// threads that mostly sleep.
///
/// Not real-time: where the kernel has real-time groups, such a thread was seen to stand still for
/// 2.4 s on a busy machine, an ordinary one for less than 0.1 s.
pub(crate) fn ask_for_priority() {
    // SAFETY: a system call without pointers; 0 is the calling thread.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -20) };
}
