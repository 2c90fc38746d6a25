//! The secret that opens the HTTP API to those who have no certificate.

use std::fmt;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use subtle::ConstantTimeEq;

use super::ConfigError;

/// Fewer characters could be guessed.
const MIN_LEN: usize = 16;
/// More do not fit a request's head.
const MAX_LEN: usize = 1024;

/// A secret; it is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// Checks a secret.
    ///
    /// # Errors
    /// It is no 16 to 1024 visible ASCII characters.
    pub fn new(secret: &str) -> Result<Self, ConfigError> {
        let bad = |why: &str| {
            Err(ConfigError::new(format!("the token {why}: make one with `openssl rand -hex 32`")))
        };
        match secret.len() {
            0 => bad("is empty; is the variable set that it comes from?"),
            1..MIN_LEN => bad("is shorter than 16 characters"),
            MIN_LEN..=MAX_LEN if secret.bytes().all(|byte| byte.is_ascii_graphic()) => {
                Ok(Self(secret.to_owned()))
            }
            MIN_LEN..=MAX_LEN => bad("has a blank or a character that is not ASCII"),
            _ => bad("is longer than 1024 characters"),
        }
    }

    /// Reads a secret from a file, without the white space around it.
    ///
    /// # Errors
    /// The file cannot be read, or as [`Token::new`].
    pub fn from_file(path: &Path) -> Result<Self, ConfigError> {
        let shown = path.display();
        let text = fs::read_to_string(path)
            .map_err(|e| ConfigError::new(format!("cannot read the token file {shown}: {e}")))?;
        let token =
            Self::new(text.trim()).map_err(|e| ConfigError::new(format!("{shown}: {e}")))?;
        let mode = fs::metadata(path).map(|meta| meta.permissions().mode() & 0o077);
        if mode.is_ok_and(|others| others != 0) {
            tracing::warn!("the token file {shown} is readable by others: chmod 600 it");
        }
        Ok(token)
    }

    /// Compares in a time that says nothing about where the two differ.
    pub fn is(&self, given: &[u8]) -> bool {
        self.0.as_bytes().ct_eq(given).into()
    }

    /// The secret, to be sent to a node.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "0123456789abcdef";

    #[test]
    fn only_the_whole_secret_opens_and_nothing_shows_it() {
        let token = Token::new(SECRET).unwrap();
        assert!(token.is(SECRET.as_bytes()));
        for wrong in ["", "0123456789abcde", "0123456789abcdeF", "0123456789abcdef0"] {
            assert!(!token.is(wrong.as_bytes()), "{wrong}");
        }
        assert!(!format!("{token:?}").contains("0123"));
    }

    #[test]
    fn weak_secrets_are_refused_without_being_repeated() {
        for weak in
            ["", "guessed", "0123456789 abcdef", "0123456789\u{e9}abcdef", &"x".repeat(1025)]
        {
            let error = Token::new(weak).unwrap_err().to_string();
            assert!(weak.is_empty() || !error.contains(weak), "{error}");
            assert!(error.contains("openssl rand"), "{error}");
        }
    }

    #[test]
    fn a_file_may_end_with_a_line_feed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        fs::write(&path, format!("{SECRET}\n")).unwrap();
        assert!(Token::from_file(&path).unwrap().is(SECRET.as_bytes()));
        fs::write(&path, "\n").unwrap();
        assert!(Token::from_file(&path).unwrap_err().to_string().contains("token:"));
        assert!(Token::from_file(&dir.path().join("none")).is_err());
    }
}
