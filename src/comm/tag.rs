//! What a message says of the operation that it belongs to.

use std::hash::{DefaultHasher, Hash, Hasher};

use bytemuck::{Pod, Zeroable};

use super::parcel::Operation;

/// Bytes of a name that travel.
const NAME: usize = 32;

/// An operation as it travels with every message: its name as far as it has room, and its digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Tag {
    name: [u8; NAME],
    digest: u64,
}

impl From<Operation> for Tag {
    fn from(Operation { name: text, digest }: Operation) -> Self {
        let mut name = [0; NAME];
        let len = text.len().min(NAME);
        name[..len].copy_from_slice(&text.as_bytes()[..len]);
        let digest = match text.len() <= NAME {
            true => digest,
            // What has no room counts too.
            false => {
                let mut hasher = DefaultHasher::new();
                (text, digest).hash(&mut hasher);
                hasher.finish()
            }
        };
        Tag { name, digest }
    }
}

impl Tag {
    /// Whether both are of one operation, under whatever.
    pub(super) fn same_name(&self, other: &Tag) -> bool {
        self.name == other.name
    }

    /// What the operation is under.
    pub(super) fn digest(&self) -> u64 {
        self.digest
    }

    /// The name, as far as it travels.
    pub(super) fn name(&self) -> String {
        let len = self.name.iter().position(|&byte| byte == 0).unwrap_or(NAME);
        String::from_utf8_lossy(&self.name[..len]).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_tell_operations_and_digests_apart() {
        let tag = |name, digest| Tag::from(Operation::under(name, digest));
        assert_eq!(tag("all_gather", 7), tag("all_gather", 7));
        assert!(tag("all_gather", 7).same_name(&tag("all_gather", 8)) && tag("all_gather", 7) != tag("all_gather", 8));
        assert!(!tag("all_gather", 7).same_name(&tag("all_gather_v", 7)));
        assert_eq!((tag("ring", 1).name(), tag("ring", 1).digest()), ("ring".to_string(), 1));
        let (one, other) =
            ("an operation of a name that is longer than 32 bytes", "an operation of a name that is longer");
        assert_ne!(tag(one, 7), tag(other, 7), "the names differ where they no longer travel");
    }
}
