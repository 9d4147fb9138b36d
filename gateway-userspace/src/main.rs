//! vpc-gateway.
fn main() {}
