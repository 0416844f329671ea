//! What hosts write to an image of a copy.
//!
//! A copy's log is its source's, byte for byte, so a writable image of it cannot be a branch in that log. Its writes go to a group of its own,
//! the *scratch*, in `scratch/IMAGE` of the copy's directory: with a log, an index and a superblock like any group's, and volumes whose blocks
//! are the read-only image's where no record of its own says otherwise. So whatever changes blocks, makes them durable or recovers them is the
//! engine's own code. Three things are different:
//! - Nothing is ever folded: there is no base to fold into, and closing the image discards it all. Its log grows until then.
//! - It lives within the group whose image it is: opened after it, closed before it, and known to it alone. That group's superblock decides
//!   what there is: the scratch is whole and durable before the image is remembered, and goes when the image is forgotten. A directory that
//!   belongs to no image is what a crash left, and is removed when the group is opened.
//! - It leaves some of the disk free, so that a test does not end the copy that it is made on: at that it is full.
//! - It refers to that group weakly, which refers to it: a group that is let go of must not be held by its own image.
//!
//! A promoted copy keeps its images, these too. Locks: whoever holds any of the scratch's may read the group's image below it, which takes that
//! group's `state` for moments; whoever holds that `state` takes none of the scratch's.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Weak},
};

use uuid::Uuid;

use crate::{
    error::Context,
    files::Files,
    group::{lay_out, Ground, Group, Inner, Options, VolumeState},
    image::ImageState,
    read::Line,
    superblock::{ImageEntry, Memory, VolumeInfo},
    volume::Volume,
    Error, Result,
};

/// Where the writes of an image go, if beside the log.
pub(crate) enum Scratch {
    Open(Group),
    /// It cannot be opened, and why. The image shows no volumes; it can be closed.
    Unusable(String),
}

impl Scratch {
    pub(crate) fn group(&self) -> Option<&Group> {
        match self {
            Scratch::Open(group) => Some(group),
            Scratch::Unusable(_) => None,
        }
    }
}

/// A volume of a read-only image, as what lies under a volume of a scratch.
pub(crate) struct Under {
    group: Weak<Inner>,
    volume: Arc<VolumeState>,
    image: Arc<ImageState>,
}

impl Under {
    pub(crate) fn volume(&self) -> Result<Volume> {
        let inner =
            self.group.upgrade().ok_or_else(|| Error::Gone(format!("image {}", self.image.entry.name)))?;
        Ok(Volume {
            group: Group(inner),
            volume: Arc::clone(&self.volume),
            line: Line::Image(Arc::clone(&self.image)),
        })
    }
}

/// The share of its disk that a scratch leaves free, and the most of it.
const FREE_SHARE: u64 = 20;
const FREE_BYTES: u64 = 1 << 30;

/// Refuses to let a scratch take `bytes` more of what is kept free for the copy.
pub(crate) fn check_space(files: &dyn Files, dir: &Path, name: &str, bytes: u64) -> Result<()> {
    // Where the system does not tell, a full disk will.
    let Ok((free, total)) = files.space(dir) else { return Ok(()) };
    let kept = (total / FREE_SHARE).min(FREE_BYTES);
    if free < kept.saturating_add(bytes) {
        return Err(Error::NoSpace {
            group: name.to_string(),
            detail: format!(
                "{free} bytes are free where {} lies, of which {kept} are left to the copy: make room there, or close the image",
                dir.display()
            ),
        });
    }
    Ok(())
}

/// The directory of all scratches of a group.
fn root(dir: &Path) -> PathBuf {
    dir.join("scratch")
}

/// The directory of an image's.
pub(crate) fn directory(dir: &Path, image: &str) -> PathBuf {
    root(dir).join(image)
}

/// Makes the scratch of a new image, with the identity that `image` remembers, and opens it. Durable when it returns.
pub(crate) fn create(parent: &Arc<Inner>, image: &Arc<ImageState>, id: Uuid) -> Result<Group> {
    let files = &*parent.files;
    let name = &image.entry.name;
    // One of the same name may have been left behind.
    discard(parent, name)?;
    check_space(files, &parent.dir, &title(parent, name), parent.segment_bytes)?;
    let root = root(&parent.dir);
    files.create_dir(&root).doing("creating", &root)?;
    files.sync_dir(&parent.dir).doing("syncing", &parent.dir)?;
    let mut memory = Memory::new(id, title(parent, name), parent.segment_bytes, files.now_ns());
    memory.volumes = image
        .shown(parent)
        .into_iter()
        .map(|v| VolumeInfo { base: Vec::new(), adopted: false, created_lsn: 0, ..v.info.clone() })
        .collect();
    memory.next_volume = memory.volumes.iter().map(|v| v.number + 1).max().unwrap_or(1);
    let made = lay_out(files, &directory(&parent.dir, name), memory);
    made.and_then(|()| open_group(parent, image)).inspect_err(|_| {
        let _ = discard(parent, name);
    })
}

fn title(parent: &Inner, image: &str) -> String {
    format!("{} (image {image})", parent.name)
}

fn open_group(parent: &Arc<Inner>, image: &Arc<ImageState>) -> Result<Group> {
    let dir = directory(&parent.dir, &image.entry.name);
    let options = Options { segment_bytes: parent.segment_bytes, background: parent.background };
    Group::open_over(Arc::clone(&parent.files), &dir, &options, &|info| {
        let volume = parent.state.read().volumes.get(&info.number).cloned();
        let volume = volume.filter(|v| v.info.block_count == info.block_count);
        let volume = volume.ok_or_else(|| Error::Damaged {
            path: dir.clone(),
            detail: format!(
                "group {} has no volume {} of {} blocks",
                parent.name, info.name, info.block_count
            ),
        })?;
        Ok(Ground::Image(Under { group: Arc::downgrade(parent), volume, image: Arc::clone(image) }))
    })
}

/// Opens the scratch that a known image has. What can only be a passing failure of the medium is an error; anything else is said by the
/// image, and keeps nobody from the rest of the group.
pub(crate) fn open(parent: &Arc<Inner>, image: &Arc<ImageState>, id: Uuid) -> Result<Scratch> {
    let why = match open_group(parent, image) {
        Ok(group) if group.id() == id => return Ok(Scratch::Open(group)),
        Ok(group) => {
            group.0.abandon();
            format!("{} belongs to another image", group.0.dir.display())
        }
        Err(Error::Io { source, path, .. }) if source.kind() == io::ErrorKind::NotFound => {
            format!("{} is missing", path.display())
        }
        Err(e @ (Error::Io { .. } | Error::Busy { .. } | Error::Gone(_) | Error::Failed { .. })) => {
            return Err(e)
        }
        Err(e) => e.to_string(),
    };
    let name = &image.entry.name;
    log::error!("group {}: what was written to image {name} cannot be read: {why}", parent.name);
    Ok(Scratch::Unusable(format!(
        "what was written to it cannot be read: {why}; restore that and start again, or close the image"
    )))
}

/// Removes what was written to an image; no error if there is nothing.
pub(crate) fn discard(parent: &Inner, image: &str) -> Result<()> {
    let (root, dir) = (root(&parent.dir), directory(&parent.dir, image));
    let files = &*parent.files;
    match files.remove_dir(&dir).and_then(|()| files.sync_dir(&root)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.doing("removing", &dir),
    }
}

/// Removes the scratches that no image remembers.
pub(crate) fn discard_strays(parent: &Inner, images: &[ImageEntry]) -> Result<()> {
    let root = root(&parent.dir);
    let found = match parent.files.list(&root) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found.doing("listing", &root)?,
    };
    for name in found.iter().filter(|n| !images.iter().any(|e| e.scratch.is_some() && e.name == **n)) {
        if let Err(e) = discard(parent, name) {
            log::warn!("group {}: {e}: no image knows it; remove it by hand", parent.name);
        }
    }
    Ok(())
}
