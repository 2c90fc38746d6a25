//! `node.json`: who this node is, which cluster it belongs to, and the highest epoch it has seen.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::IoContext;
use crate::{Error, OpenMode, Result, Storage, random};

/// The version of the data directory's layout.
const FORMAT: u32 = 1;

/// Its name in the data directory.
pub(crate) const NODE_FILE: &str = "node.json";

/// See the module's text.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NodeFile {
    format: u32,
    #[serde(with = "hex")]
    pub node_id: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_id: Option<String>,
    #[serde(default)]
    pub epoch: u64,
}

mod hex {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(id: &u64, out: S) -> Result<S::Ok, S::Error> {
        out.serialize_str(&format!("{id:016X}"))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(input: D) -> Result<u64, D::Error> {
        let text = String::deserialize(input)?;
        u64::from_str_radix(&text, 16).map_err(D::Error::custom)
    }
}

impl NodeFile {
    /// Reads the file, or creates it in a new data directory.
    pub(crate) fn open(storage: &dyn Storage, dir: &Path, node_id: Option<u64>) -> Result<Self> {
        let path = dir.join(NODE_FILE);
        let file = match storage.open(&path, OpenMode::Read) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let node_id = node_id.unwrap_or_else(random);
                let new = Self { format: FORMAT, node_id, cluster_id: None, epoch: 0 };
                new.write(storage, dir)?;
                return Ok(new);
            }
            file => file.at("open", &path)?,
        };
        let mut bytes = vec![0; 4096];
        let read = file.read_at(&mut bytes, 0).at("read", &path)?;
        let parsed: Result<Self, _> = serde_json::from_slice(&bytes[..read]);
        let bad = |reason| Error::BadDirectory { dir: dir.to_path_buf(), reason };
        let node = parsed.map_err(|e| bad(format!("node.json is damaged: {e}")))?;
        if node.format != FORMAT {
            let format = node.format;
            return Err(bad(format!(
                "it has format {format}, this version knows format {FORMAT} only: use a newer version"
            )));
        }
        Ok(node)
    }

    /// Replaces the file, durably.
    pub(crate) fn write(&self, storage: &dyn Storage, dir: &Path) -> Result<()> {
        let (new, path) = (dir.join("node.json.new"), dir.join(NODE_FILE));
        let text = serde_json::to_vec_pretty(self).expect("BUG: plain fields serialize");
        let file = storage.open(&new, OpenMode::CreateNew).at("create", &new)?;
        file.write_all_at(&text, 0).and_then(|()| file.sync_data()).at("write", &new)?;
        storage.rename(&new, &path).at("rename", &new)?;
        storage.sync_dir(dir).at("sync", dir)
    }
}
