//! Which node a command asks, and how it proves that it may.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use rustls::ClientConfig;

use super::client::Client;
use super::{CliError, DEFAULT_URL};
use crate::config::{Config, Token, is_loopback};
use crate::tls::https;

/// A running node.
#[derive(Args, Clone, Default)]
pub(super) struct NodeArgs {
    /// The node's HTTP address; https:// from other hosts [default: http://localhost:20202, or
    /// the port in --config]
    #[arg(long)]
    url: Option<String>,
    /// The node's http.token, for a node on another host
    #[arg(long, env = "LITEFS_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// The cluster's authority (ca.crt), to recognise a node at https://
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// A node's configuration: its certificates, token and port
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl NodeArgs {
    /// The node's API.
    pub(super) fn client(&self) -> Result<Client, CliError> {
        let config = self.config.as_ref().map(Config::from_file).transpose()?;
        let url = self.url_with(config.as_ref());
        let tls = if url.starts_with("https://") { Some(self.tls(config.as_ref())?) } else { None };
        let given = self.token.as_deref().filter(|token| !token.is_empty());
        let token = match given {
            Some(token) => Some(Token::new(token)?),
            None => config.and_then(|config| config.http.token),
        };
        Client::with(&url, token, tls)
    }

    /// The node at this address, without credentials.
    #[cfg(test)]
    pub(super) fn at(url: &str) -> Self {
        Self { url: Some(url.to_owned()), ..Self::default() }
    }

    fn url_with(&self, config: Option<&Config>) -> String {
        let of_config = |config: &Config| {
            let addr = config.http.addr;
            if is_loopback(addr.ip()) {
                format!("http://{addr}")
            } else {
                format!("http://localhost:{}", addr.port())
            }
        };
        let given = self.url.clone().or_else(|| config.map(of_config));
        given.unwrap_or_else(|| DEFAULT_URL.to_owned())
    }

    fn tls(&self, config: Option<&Config>) -> Result<Arc<ClientConfig>, CliError> {
        let files = config.and_then(|config| config.tls.files.as_ref());
        match (&self.ca, files) {
            (Some(ca), _) => Ok(https::client_of_authority(ca)?),
            (None, Some(files)) => Ok(https::client_of_node(files)?),
            (None, None) => Err(CliError::new(
                "https:// needs the cluster's authority, to recognise the node: name its ca.crt \
                 with --ca, or a configuration with tls.* with --config",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(url: Option<&str>) -> NodeArgs {
        NodeArgs { url: url.map(str::to_owned), ..NodeArgs::default() }
    }

    #[test]
    fn the_configuration_says_the_port_unless_an_address_is_given() {
        let at = |addr: &str| Config::new("/d").listen(addr.parse().unwrap());
        let url = |url, addr| args(url).url_with(Some(&at(addr)));
        assert_eq!(args(None).url_with(None), "http://localhost:20202");
        assert_eq!(url(None, "[::]:7"), "http://localhost:7");
        assert_eq!(url(None, "127.0.0.1:7"), "http://127.0.0.1:7");
        assert_eq!(url(Some("https://db1:9"), "[::]:7"), "https://db1:9");
    }

    #[test]
    fn https_without_an_authority_and_a_weak_token_are_explained() {
        let error = args(Some("https://db1:1")).client().err().unwrap();
        assert!(error.0.contains("--ca") && error.0.contains("--config"), "{}", error.0);
        let weak = NodeArgs { token: Some("weak".into()), ..args(None) };
        assert!(weak.client().err().unwrap().0.contains("16 characters"));
    }
}
