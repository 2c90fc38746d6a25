//! Where a configuration is looked for when none is named: where LiteFS looks.

use std::path::{Path, PathBuf};

use super::ConfigError;

/// The first of `./litefs.yml`, `~/litefs.yml` and `/etc/litefs.yml` that is there.
pub(super) fn find(
    home: Option<&Path>,
    exists: &dyn Fn(&Path) -> bool,
) -> Result<PathBuf, ConfigError> {
    let in_home = home.map(|home| home.join("litefs.yml"));
    let places = [Some("litefs.yml".into()), in_home, Some("/etc/litefs.yml".into())];
    places.into_iter().flatten().find(|path| exists(path)).ok_or_else(|| {
        ConfigError::new(
            "there is no litefs.yml here, in the home directory or in /etc: name one with --config",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_file_wins() {
        let home = Path::new("/home/me");
        let places = ["litefs.yml", "/home/me/litefs.yml", "/etc/litefs.yml"].map(Path::new);
        for (missing, place) in places.iter().enumerate() {
            let found = find(Some(home), &|path| places[missing..].contains(&path));
            assert_eq!(found.unwrap(), *place);
        }
        assert_eq!(find(None, &|path| path == places[2]).unwrap(), places[2]);
        assert!(find(Some(home), &|_| false).unwrap_err().to_string().contains("--config"));
    }
}
