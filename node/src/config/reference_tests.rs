//! Risk: a key is served, but neither in `config example` nor in docs/configuration.md, or a
//! default there is another one than the code's.
//!
//! The keys are asked of the parser, which names them when it meets an unknown one.

use std::collections::BTreeMap;

use super::Config;

const DOCUMENT: &str = include_str!("../../../docs/configuration.md");
const UNKNOWN: &str = "zzz-unknown";

/// The keys of the section, in full (`data.dir`); sections within it are taken apart.
fn keys_below(section: &[&str]) -> Vec<String> {
    let mut text = String::new();
    for (depth, key) in section.iter().chain([&UNKNOWN]).enumerate() {
        text += &format!("{}{key}:\n", "  ".repeat(depth));
    }
    // Where there are no keys below, another error comes, or none.
    let parsed = Config::from_yaml(&format!("{} 1\n", text.trim_end()));
    let error = parsed.err().map(|error| error.to_string()).unwrap_or_default();
    let Some((_, known)) = error.split_once("known here are ") else {
        return vec![section.join(".")];
    };
    known.split(", ").flat_map(|key| keys_below(&[section, &[key]].concat())).collect()
}

fn known_keys() -> Vec<String> {
    let mut keys = keys_below(&[]);
    keys.sort();
    assert!(keys.len() > 50 && keys.contains(&"lease.consul.key".to_owned()), "{keys:?}");
    keys
}

/// The example with the keys that are switched off, as `#key:`.
fn whole_example() -> String {
    let uncomment = |line: &str| match line.trim_start().strip_prefix('#') {
        Some(key) if key.starts_with(|c: char| c.is_ascii_lowercase()) => {
            format!("{}{key}\n", &line[..line.len() - key.len() - 1])
        }
        _ => format!("{line}\n"),
    };
    Config::EXAMPLE.lines().map(uncomment).collect()
}

/// Each key that the example names, with its value.
fn example_values() -> BTreeMap<String, String> {
    let mut values = BTreeMap::new();
    let mut section: Vec<String> = Vec::new();
    let text = whole_example();
    for line in text.lines().filter(|line| !line.trim_start().starts_with('#')) {
        let Some((key, value)) = line.trim_start().split_once(':') else { continue };
        section.truncate((line.len() - line.trim_start().len()) / 2);
        section.push(key.to_owned());
        if !value.is_empty() {
            let value = value.trim().trim_matches('"').replace("null", "");
            values.insert(section.join("."), value);
        }
    }
    values
}

#[test]
fn the_example_names_every_key_and_means_the_defaults() {
    let named: Vec<String> = example_values().into_keys().collect();
    assert_eq!(named, known_keys());
    let plain = Config::from_yaml(Config::EXAMPLE).unwrap();
    assert_eq!(plain, Config::new("/var/lib/litefs"), "a notice, or another value");
    let mut whole = Config::from_yaml(&whole_example()).unwrap();
    whole.notices.clear();
    assert_eq!(whole, Config::new("/var/lib/litefs"));
}

#[test]
fn the_reference_documents_every_key_with_its_default() {
    let rows = DOCUMENT.lines().filter_map(|line| {
        let mut cells = line.strip_prefix("| `")?.split('|');
        let cell = |text: Option<&str>| text.map(|text| text.trim().replace('`', ""));
        Some((cell(cells.next())?, cell(cells.next())?))
    });
    let documented: BTreeMap<String, String> = rows.collect();
    assert_eq!(documented, example_values());
}
