//! The cookie `__txid`: the position that a client has seen, as LiteFS writes it.

use std::time::{Duration, SystemTime};

use axum::http::{HeaderMap, HeaderValue, header};
use litefs_ltx::Txid;

const NAME: &str = "__txid";
/// How long a client keeps it: long enough for any replica that is worth asking.
const EXPIRY: Duration = Duration::from_secs(300);

/// The client's position; `None` if there is no cookie that says one.
pub(super) fn position(headers: &HeaderMap) -> Option<Txid> {
    let lines = headers.get_all(header::COOKIE).iter().filter_map(|line| line.to_str().ok());
    let mut pairs = lines.flat_map(|line| line.split(';')).filter_map(|pair| pair.split_once('='));
    let (_, value) = pairs.find(|(name, _)| name.trim() == NAME)?;
    let value = value.trim();
    let value = value.strip_prefix('"').and_then(|v| v.strip_suffix('"')).unwrap_or(value);
    value.parse().ok().filter(|txid| *txid != Txid::ZERO)
}

/// The value of `Set-Cookie` for a client that has seen `txid`.
pub(super) fn set(txid: Txid) -> HeaderValue {
    set_at(txid, SystemTime::now())
}

fn set_at(txid: Txid, now: SystemTime) -> HeaderValue {
    let expires = httpdate::fmt_http_date(now + EXPIRY);
    HeaderValue::try_from(format!("{NAME}={txid}; Path=/; Expires={expires}; HttpOnly"))
        .expect("BUG: digits and a date are a header's value")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(lines: &[&str]) -> Option<u64> {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(header::COOKIE, HeaderValue::from_bytes(line.as_bytes()).unwrap());
        }
        position(&headers).map(Txid::get)
    }

    #[test]
    fn the_first_cookie_of_that_name_counts_and_nonsense_is_no_cookie() {
        assert_eq!(of(&["__txid=000000000000000a"]), Some(10));
        assert_eq!(of(&["a=b; __txid=000000000000000A; c=d"]), Some(10));
        assert_eq!(of(&["a=b", "x=1;__txid=\"0000000000000002\""]), Some(2));
        assert_eq!(of(&["__txid=0000000000000001; __txid=0000000000000002"]), Some(1));
        for nothing in [
            "",
            "__txid",
            "__txid=",
            "__txid=5",
            "__txid=0000000000000000",
            "__txid=000000000000000g",
            "__txid=00000000000000001",
            "__TXID=0000000000000001",
            "a__txid=0000000000000001",
        ] {
            assert_eq!(of(&[nothing]), None, "{nothing}");
        }
        assert_eq!(of(&["a=\u{fc}; __txid=0000000000000001"]), None);
    }

    /// As Go's `http.SetCookie` writes what LiteFS sets (http/proxy_server.go).
    #[test]
    fn the_cookie_is_litefss() {
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777 - 300);
        assert_eq!(
            set_at(Txid::new(255), start),
            "__txid=00000000000000ff; Path=/; Expires=Sun, 06 Nov 1994 08:49:37 GMT; HttpOnly"
        );
    }
}
