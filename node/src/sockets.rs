//! The sockets of a node: TCP for the HTTP API and UDP for QUIC, on one port number, and TCP for
//! the proxy.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};

use socket2::{Domain, Protocol, Socket, Type};

use crate::config::Config;
use crate::tls::bind_socket;

/// How often a port that the system chose for one socket may be taken for the other.
const PORT_TRIES: usize = 16;

/// The setting of the two sockets with one port.
const KEY: &str = "http.addr";

/// Waiting connections, as the kernel queues them.
const BACKLOG: i32 = 128;

/// All sockets, bound, non-blocking.
pub struct Sockets {
    /// For [`crate::http::start`].
    pub api: TcpListener,
    /// For [`crate::proxy::start`], if the configuration has a proxy.
    pub proxy: Option<TcpListener>,
    /// For QUIC.
    pub quic: UdpSocket,
    /// The address of `quic`, with the real port.
    pub addr: SocketAddr,
}

impl Sockets {
    /// Binds them as `config` says; with port 0, the system chooses one port for API and QUIC.
    pub fn bind(config: &Config) -> io::Result<Self> {
        let proxy = config.proxy.as_ref().map(|proxy| {
            bind_tcp(proxy.addr).map_err(|e| explain(e, "TCP", "proxy.addr", proxy.addr))
        });
        let proxy = proxy.transpose()?;
        let wanted = config.http.addr;
        let mut tries = if wanted.port() == 0 { PORT_TRIES } else { 1 };
        loop {
            let quic = bind_socket(wanted).map_err(|e| explain(e, "UDP", KEY, wanted))?;
            let addr = quic.local_addr()?;
            let api_addr = SocketAddr::new(wanted.ip(), addr.port());
            tries -= 1;
            match bind_tcp(api_addr) {
                Ok(api) => return Ok(Self { api, proxy, quic, addr }),
                Err(e) if e.kind() == io::ErrorKind::AddrInUse && tries > 0 => {}
                Err(e) => return Err(explain(e, "TCP", KEY, api_addr)),
            }
        }
    }
}

fn bind_tcp(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket =
        match (Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP)), addr) {
            (Ok(socket), _) => socket,
            (Err(_), SocketAddr::V6(v6)) if v6.ip().is_unspecified() => {
                return bind_tcp((std::net::Ipv4Addr::UNSPECIFIED, addr.port()).into());
            }
            (Err(e), _) => return Err(e),
        };
    if addr.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    // A restarted node finds its port although old connections linger.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn explain(error: io::Error, what: &str, key: &str, addr: SocketAddr) -> io::Error {
    let hint = match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!(": another process has it; set {key} to a free port")
        }
        io::ErrorKind::AddrNotAvailable => ": this host does not have that address".to_owned(),
        _ => String::new(),
    };
    io::Error::new(error.kind(), format!("cannot listen on {addr} ({what}): {error}{hint}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loopback() -> Config {
        Config::new("/tmp/x").listen("127.0.0.1:0".parse().unwrap())
    }

    #[test]
    fn a_chosen_port_is_the_same_for_both() {
        let sockets = Sockets::bind(&loopback()).unwrap();
        assert_ne!(sockets.addr.port(), 0);
        assert_eq!(sockets.api.local_addr().unwrap(), sockets.addr);
        assert_eq!(sockets.quic.local_addr().unwrap(), sockets.addr);
    }

    #[test]
    fn a_taken_port_is_named() {
        let sockets = Sockets::bind(&loopback()).unwrap();
        let second = loopback().listen(sockets.addr);
        let error = Sockets::bind(&second).err().unwrap().to_string();
        assert!(
            error.contains(&sockets.addr.to_string()) && error.contains("http.addr"),
            "{error}"
        );
    }
}
