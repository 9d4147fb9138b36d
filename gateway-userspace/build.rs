//! Hands the eBPF object to the program when the feature `embed-ebpf` is on.

use std::env;
use std::path::Path;

const VARIABLE: &str = "VPC_GATEWAY_EBPF_OBJECT";

fn main() {
    println!("cargo::rerun-if-env-changed={VARIABLE}");
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_EMBED_EBPF").is_none() {
        return;
    }
    match env::var(VARIABLE) {
        Ok(path) if Path::new(&path).is_absolute() && Path::new(&path).is_file() => {
            println!("cargo::rerun-if-changed={path}");
            println!("cargo::rustc-env={VARIABLE}={path}");
        }
        Ok(path) => println!(
            "cargo::error={VARIABLE} is {path:?}, expected the absolute path of the eBPF object; \
             build with: cargo xtask build"
        ),
        Err(_) => println!(
            "cargo::error=the feature embed-ebpf needs the eBPF object; \
             build with: cargo xtask build"
        ),
    }
}
