//! Headers that a proxy changes: those of one connection, and those that describe the client.

use std::net::IpAddr;

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};

/// Marks a request that a replica forwards to the primary, and the response of the primary's
/// proxy; a response without it comes from somebody else there.
pub const FORWARDED: HeaderName = HeaderName::from_static("litefs-forwarded");

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Headers that concern one connection only (RFC 9110, 7.6.1), and `Expect`, which the server
/// answers itself.
const HOP_BY_HOP: [HeaderName; 10] = [
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::EXPECT,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// Removes what concerns the connection that a message came on.
pub(super) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        // A client must not make the proxy forget where the body ends or whom it asks.
        if *name != header::CONTENT_LENGTH && *name != header::HOST {
            headers.remove(name);
        }
    }
}

/// The protocol that a client wants its connection to change to, if it may: `h2c` would carry
/// requests past this proxy.
pub(super) fn wanted_protocol(headers: &HeaderMap) -> Option<HeaderValue> {
    let names = |line: &HeaderValue, word: &str| {
        let text = line.to_str().unwrap_or_default();
        text.split(',').any(|part| part.trim().eq_ignore_ascii_case(word))
    };
    let asked = headers.get_all(header::CONNECTION).iter().any(|line| names(line, "upgrade"));
    let protocol = headers.get(header::UPGRADE).filter(|_| asked)?;
    (!names(protocol, "h2c")).then(|| protocol.clone())
}

/// Asks for, or agrees to, a change of the protocol.
pub(super) fn ask_upgrade(headers: &mut HeaderMap, protocol: HeaderValue) {
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, protocol);
}

/// Tells the application who asks: adds `peer` to what proxies before this one said. No client
/// can pass itself off as another node.
pub(super) fn describe_client(headers: &mut HeaderMap, peer: IpAddr) {
    headers.remove(FORWARDED);
    let mut chain: Vec<u8> = Vec::new();
    for line in headers.get_all(FORWARDED_FOR) {
        chain.extend_from_slice(line.as_bytes());
        chain.extend_from_slice(b", ");
    }
    chain.extend_from_slice(peer.to_canonical().to_string().as_bytes());
    let chain = HeaderValue::try_from(chain).expect("BUG: made of header values and an address");
    headers.insert(FORWARDED_FOR, chain);
    headers.entry(FORWARDED_PROTO).or_insert(HeaderValue::from_static("http"));
    if let Some(host) = headers.get(header::HOST).cloned() {
        headers.entry(FORWARDED_HOST).or_insert(host);
    }
}

/// The path as Go's `URL.Path` has it, without percent-encoding. What is encoded badly stays.
pub(super) fn decoded_path(path: &str) -> Vec<u8> {
    let digit = |byte: Option<&u8>| char::from(*byte?).to_digit(16);
    let mut decoded = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let pair = (first == b'%').then(|| Some((digit(after.first())?, digit(after.get(1))?)));
        if let Some((high, low)) = pair.flatten() {
            decoded.push((high * 16 + low) as u8);
            rest = &after[2..];
        } else {
            decoded.push(first);
            rest = after;
        }
    }
    decoded
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in lines {
            map.append(*name, HeaderValue::from_static(value));
        }
        map
    }

    #[test]
    fn what_concerns_one_connection_goes_no_further() {
        let mut map = headers(&[
            ("connection", "keep-alive, X-Secret"),
            ("connection", "host, content-length, bad name"),
            ("x-secret", "1"),
            ("keep-alive", "timeout=5"),
            ("transfer-encoding", "chunked"),
            ("te", "trailers"),
            ("upgrade", "websocket"),
            ("proxy-authorization", "Basic x"),
            ("host", "a"),
            ("content-length", "3"),
            ("authorization", "Bearer x"),
        ]);
        strip_hop_by_hop(&mut map);
        let mut left: Vec<&str> = map.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["authorization", "content-length", "host"]);
    }

    #[test]
    fn only_a_whole_request_for_an_upgrade_is_one_and_never_to_h2c() {
        let wanted = |lines: &[(&'static str, &'static str)]| wanted_protocol(&headers(lines));
        let both = [("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")];
        assert_eq!(wanted(&both).unwrap(), "websocket");
        assert_eq!(wanted(&both[..1]), None);
        assert_eq!(wanted(&both[1..]), None);
        assert_eq!(wanted(&[("connection", "upgrade"), ("upgrade", "h2c")]), None);
        assert_eq!(wanted(&[("connection", "upgrade"), ("upgrade", "x, H2C")]), None);
    }

    #[test]
    fn the_application_learns_the_client_and_nobody_can_pose_as_a_node() {
        let mut map = headers(&[("host", "app.example"), ("litefs-forwarded", "AB")]);
        describe_client(&mut map, "::ffff:10.0.0.9".parse().unwrap());
        assert_eq!(map["x-forwarded-for"], "10.0.0.9");
        assert_eq!(map["x-forwarded-proto"], "http");
        assert_eq!(map["x-forwarded-host"], "app.example");
        assert!(!map.contains_key(FORWARDED));

        let mut map = headers(&[
            ("x-forwarded-for", "1.2.3.4, 5.6.7.8"),
            ("x-forwarded-for", "9.9.9.9"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "public"),
            ("host", "inner"),
        ]);
        describe_client(&mut map, "fe80::1".parse().unwrap());
        assert_eq!(map["x-forwarded-for"], "1.2.3.4, 5.6.7.8, 9.9.9.9, fe80::1");
        assert_eq!(map.get_all("x-forwarded-for").iter().count(), 1);
        assert_eq!(map["x-forwarded-proto"], "https");
        assert_eq!(map["x-forwarded-host"], "public");
    }

    #[test]
    fn paths_are_decoded_once() {
        for (path, decoded) in
            [("/a%2Fb", "/a/b"), ("/%61", "/a"), ("/%2525", "/%25"), ("/%", "/%"), ("/%4", "/%4")]
        {
            assert_eq!(decoded_path(path), decoded.as_bytes());
        }
        assert_eq!(decoded_path("/%zz%ff"), b"/%zz\xff");
    }
}
