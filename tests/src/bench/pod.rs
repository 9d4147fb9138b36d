//! Records of the bench's object as aya wants them.
#![allow(unsafe_code, reason = "records as bytes")]

use super::flow::{Flows, Progress, Record, Seen, Target};

/// A record.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub(super) struct Raw<T>(pub(super) T);

macro_rules! pods {
    ($($record:ty: $bytes:literal),+) => {
        $(
            // SAFETY: `repr(C)`, valid for every bit pattern; the size says that there is no padding.
            unsafe impl aya::Pod for Raw<$record> {}
            const _: () = assert!(size_of::<$record>() == $bytes);
        )+
    };
}

pods!(Flows: 100, Progress: 32, Record: 48, Seen: 16, Target: 20);
