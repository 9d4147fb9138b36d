//! The data path.
#![no_std]
#![forbid(unsafe_code)]
