//! What is in an image archive, without touching the store: members by name, the images that its documents describe,
//! and the writer for exports.
//!
//! [`open`] decides by the bytes whether an archive can be read in any order ([`Seekable`]) or only once
//! ([`Stream`]). [`find_images`] reads the descriptions of both with the same code, through [`Members`].
//!
//! # Names of images
//!
//! - Docker archives: `RepoTags`; an entry without any is an image without a name.
//! - OCI layouts: `io.containerd.image.name`, and without that `org.opencontainers.image.ref.name`, in Docker's normal
//!   form as on the command line. The latter may be a bare word: umoci and skopeo write `latest` where they were told
//!   no more. It becomes an image name, as `podman load` does it, so that it can be found:
//!   `docker.io/library/latest:latest`; `--tag` gives a better one.
//! - What cannot be a name is reported and the image stays unnamed.
//! - Several entries for one target are one image with several names.

mod docker;
mod found;
mod legacy;
mod member_name;
mod members;
mod oci_layout;
mod root_filesystem;
mod seekable;
mod source;
mod stream;
pub mod writer;

pub use docker::docker_manifest;
pub use found::{Format, Found, FoundImage, FoundLayer, FoundManifest, Skipped, find_images};
pub use member_name::MemberName;
pub use members::{KeptDocuments, MemberStat, Members};
pub use seekable::{MemberReader, Seekable};
pub use source::{Input, Source, open};
pub use stream::{MemberKind, Stream, StreamMember};

#[cfg(test)]
mod tests;
