//! `status`, `rules`, `sessions`, `eips`, `hosts`, `drops`: what a gateway does, read from its pinned maps. The
//! daemon need not run.

pub(super) mod bfd;
pub(super) mod drops;
pub(super) mod eips;
pub(super) mod hosts;
pub(super) mod nexthops;
mod routers;
pub(super) mod rules;
pub(super) mod sessions;
pub(super) mod status;

use anyhow::{Result, bail};

use super::GatewayOptions;
use crate::dataplane::maps::Maps;
use crate::dataplane::pins::Pins;
use crate::dataplane::probe;

/// Which gateway, and how it is shown.
#[derive(Debug, clap::Args)]
pub struct ShowOptions {
    /// Name of the VpcNatGateway. Not needed if there is only one here.
    #[arg(long, value_name = "NAME")]
    gateway: Option<String>,
    /// Prints one JSON document instead of text.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    state: GatewayOptions,
}

/// There is nothing to show.
#[derive(Debug, thiserror::Error)]
pub(super) enum Nothing {
    /// No gateway of that name.
    #[error("gateway {0} does not run here")]
    NotThere(String),
    /// A gateway without next-hop groups.
    #[error("gateway {0} has no next-hop groups; its routes decide")]
    NoNextHops(String),
    /// No gateway at all.
    #[error("no gateway runs here")]
    None,
}

impl ShowOptions {
    /// The name of the gateway: the one given, or the only one.
    fn gateway(&self) -> Result<String> {
        if let Some(name) = &self.gateway {
            return Ok(name.clone());
        }
        let mut names = Pins::gateways();
        match names.len() {
            0 => Err(Nothing::None.into()),
            1 => Ok(names.remove(0)),
            _ => {
                bail!("there are several gateways, add --gateway with one of: {}", names.join(", "))
            }
        }
    }

    /// Its maps.
    fn maps(&self) -> Result<(String, Maps)> {
        let name = self.gateway()?;
        let pins = Pins::new(&name);
        if !pins.exist() {
            return Err(Nothing::NotThere(name).into());
        }
        probe::check()?;
        pins.check()?;
        Ok((name, Maps::open(&pins)?))
    }
}
