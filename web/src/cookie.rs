//! The cookie that names the newest transaction that a client has seen.

use http::{HeaderMap, HeaderValue, header};

/// Which cookie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cookie {
    /// `__txid`, 16 hex digits, for 5 minutes: that of LiteFS's proxy.
    Txid,
    /// `txnum`, decimal, over HTTPS only (and on localhost): that of litefs-js.
    TxNum,
}

impl Cookie {
    fn name(self) -> &'static str {
        match self {
            Self::Txid => "__txid",
            Self::TxNum => "txnum",
        }
    }

    /// The number in a request's cookie; `None` if there is none.
    pub(crate) fn read(self, headers: &HeaderMap) -> Option<u64> {
        let lines = headers.get_all(header::COOKIE).iter().filter_map(|line| line.to_str().ok());
        let mut pairs =
            lines.flat_map(|line| line.split(';')).filter_map(|pair| pair.split_once('='));
        let (_, value) = pairs.find(|(name, _)| name.trim() == self.name())?;
        let value = value.trim();
        let number = match self {
            _ if !value.bytes().all(|byte| byte.is_ascii_hexdigit()) => None,
            Self::Txid if value.len() == 16 => u64::from_str_radix(value, 16).ok(),
            Self::Txid => None,
            Self::TxNum => value.parse().ok(),
        };
        number.filter(|number| *number > 0)
    }

    /// The value of `Set-Cookie`.
    pub(crate) fn set(self, transaction: u64) -> HeaderValue {
        let name = self.name();
        let text = match self {
            Self::Txid => format!("{name}={transaction:016x}; Path=/; Max-Age=300; HttpOnly"),
            Self::TxNum => {
                format!("{name}={transaction}; Path=/; HttpOnly; SameSite=Lax; Secure")
            }
        };
        HeaderValue::try_from(text).expect("BUG: letters and digits are a header's value")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cookies_are_read_as_their_makers_write_them_and_nonsense_is_none() {
        let read = |cookie: Cookie, text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::COOKIE, HeaderValue::from_str(text).unwrap());
            cookie.read(&headers)
        };
        assert_eq!(read(Cookie::Txid, "a=b; __txid=000000000000001f"), Some(31));
        assert_eq!(read(Cookie::TxNum, "a=b;txnum=31 ; c=d"), Some(31));
        for nothing in ["", "__txid", "__txid=1f", "__txid=0000000000000000", "txnum=31"] {
            assert_eq!(read(Cookie::Txid, nothing), None, "{nothing}");
        }
        for nothing in ["txnum=", "txnum=+1", "txnum=0", "txnum=1f", "txnum=99999999999999999999"] {
            assert_eq!(read(Cookie::TxNum, nothing), None, "{nothing}");
        }
    }
}
