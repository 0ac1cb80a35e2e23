//! What lies at the path of an image: nothing, a volume, or something else that stays untouched.

use crate::failure::Failure;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use swapfs_format::PAGE_LEN;
use swapfs_format::superblock::{DecodeError, Superblock};

/// What was found.
#[derive(Debug, PartialEq, Eq)]
pub enum Image {
    /// Nothing: it can be made.
    Absent,
    /// A swapfs volume.
    Volume(Box<Superblock>),
    /// Something that is no volume, or one that cannot be used, and why.
    Unusable(DecodeError),
}

/// Reads the primary superblock.
///
/// # Errors
/// If there is something at the path that cannot be read.
pub fn look(path: &Path) -> Result<Image, Failure> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Image::Absent),
        Err(error) => return Err(Failure::os(path.display(), "open", &error)),
    };
    let mut head = Vec::with_capacity(PAGE_LEN);
    Read::by_ref(&mut file)
        .take(PAGE_LEN as u64)
        .read_to_end(&mut head)
        .map_err(|error| Failure::os(path.display(), "read", &error))?;
    Ok(match Superblock::decode(&head) {
        Ok(superblock) => Image::Volume(Box::new(superblock)),
        Err(error) => Image::Unusable(error),
    })
}

/// The superblock of an image that must be a volume.
///
/// # Errors
/// With what to do about it, if it is none.
pub fn superblock(path: &Path) -> Result<Superblock, Failure> {
    match look(path)? {
        Image::Volume(superblock) => Ok(*superblock),
        Image::Absent => Err(Failure::new(path.display(), "no such file")),
        Image::Unusable(error) => Err(unusable(path, &error)),
    }
}

/// The failure for an image that is no usable volume.
#[must_use]
pub fn unusable(path: &Path, error: &DecodeError) -> Failure {
    let shown = path.display();
    let advice = match error {
        DecodeError::TooShort(_) | DecodeError::BadMagic => format!(
            "it exists and is no swapfs volume, and is left alone: if nothing in it is needed, \
             format it with 'mkswapfs {shown}'"
        ),
        DecodeError::BadChecksum { .. } | DecodeError::BadField { .. } => {
            format!("try 'fsck.swapfs -p {shown}', which repairs it from the backup copy")
        }
        DecodeError::Unreadable(_)
        | DecodeError::UnknownVersion(_)
        | DecodeError::UnknownIncompatible(_) => {
            return Failure::new(shown, error);
        }
    };
    Failure::new(shown, error).and(advice)
}

#[cfg(test)]
mod tests {
    use super::*;
    use swapfs_format::geometry::Geometry;
    use uuid::Uuid;

    #[test]
    fn each_kind_is_told_apart() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let path = dir.path().join("image");
        assert_eq!(look(&path), Ok(Image::Absent));

        std::fs::write(&path, b"").unwrap();
        assert_eq!(look(&path), Ok(Image::Unusable(DecodeError::TooShort(0))));
        std::fs::write(&path, vec![1u8; 8192]).unwrap();
        let failure = superblock(&path).unwrap_err().to_string();
        assert!(failure.contains("wrong magic"), "{failure}");
        assert!(failure.contains(&format!("mkswapfs {}", path.display())), "{failure}");

        let geometry = Geometry::ghost(1 << 20).unwrap();
        let made = Superblock::new("ram", &geometry, Uuid::from_u128(7));
        let mut bytes = made.encode().unwrap().to_vec();
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(superblock(&path), Ok(made));

        bytes[100] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let failure = superblock(&path).unwrap_err().to_string();
        assert!(failure.contains("fsck.swapfs -p"), "{failure}");
    }
}
