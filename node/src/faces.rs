//! A node's HTTP ports: the API, and the proxy before the application.

use std::io;
use std::net::TcpListener;
use std::sync::Arc;

use tokio::sync::watch;

use crate::NodeError;
use crate::config::Config;
use crate::http::{self, Access, NodeView};
use crate::proxy::{self, Link, Proxy};
use crate::tls::TlsMode;

/// Both servers, running.
pub(crate) struct Faces {
    api: http::Server,
    proxy: Option<http::Server>,
    stop: watch::Sender<bool>,
}

impl Faces {
    /// Serves `view` on the listeners (non-blocking). Call it within a tokio runtime.
    pub(crate) fn start(
        view: &Arc<impl NodeView>,
        config: &Config,
        tls: &Arc<TlsMode>,
        api: TcpListener,
        proxy: Option<TcpListener>,
    ) -> Result<Self, NodeError> {
        let access = Access::new(config, tls)?;
        let link = Link { tls: tls.https_client()?, token: config.http.token.clone() };
        let view: Arc<dyn NodeView> = view.clone();
        let (stop, stopped) = watch::channel(false);
        let decider = config.proxy.clone().map(|c| Proxy::new(c, view.clone(), link, stopped));
        let api = http::start(view, api, access, decider.clone())?;
        let proxy = decider.zip(proxy).map(|(decider, listener)| {
            let server = proxy::start(decider, listener)?;
            tracing::info!("the proxy listens on {}", server.local_addr());
            io::Result::Ok(server)
        });
        Ok(Self { api, proxy: proxy.transpose()?, stop })
    }

    /// Takes no more requests and waits for the running ones, but only seconds.
    pub(crate) async fn shutdown(self) {
        // The API waits for tunnels that were forwarded through it.
        let _ = self.stop.send(true);
        if let Some(proxy) = self.proxy {
            proxy.shutdown().await;
        }
        self.api.shutdown().await;
    }
}
