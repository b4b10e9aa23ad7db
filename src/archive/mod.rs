//! stub
#![allow(missing_docs, dead_code)]
use crate::{error::Result, io::codec::Codec, limits::Limits, oci::*, parallel::Budget};
use std::io::{BufRead, Read};
pub mod writer {
    use super::*;
    pub struct DockerImage {
        pub config: Digest,
        pub layers: Vec<Digest>,
        pub repo_tags: Vec<String>,
    }
    pub struct LayoutWriter<W>(W);
    impl<W: std::io::Write> LayoutWriter<W> {
        pub fn begin(w: W) -> Result<Self> {
            Ok(Self(w))
        }
        pub fn blob(&mut self, _: &Digest, _: u64, _: impl Read) -> Result<()> {
            Ok(())
        }
        pub fn finish(self, _: &Index, _: Option<&[DockerImage]>) -> Result<W> {
            Ok(self.0)
        }
    }
}
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct MemberName(Vec<u8>);
impl MemberName {
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}
impl std::fmt::Display for MemberName {
    fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        Ok(())
    }
}
pub enum Input {
    Path(std::path::PathBuf),
    Reader { name: String, reader: Box<dyn Read + Send> },
    File { name: String, file: std::fs::File },
}
impl Input {
    pub fn name(&self) -> String {
        String::new()
    }
}
pub enum Source {
    Seekable(Seekable),
    Stream(Stream),
}
impl Source {
    pub fn size_bytes(&self) -> Option<u64> {
        None
    }
}
pub fn open(_: Input, _: &Limits, _: &Budget) -> Result<Source> {
    unimplemented!()
}
#[derive(Clone)]
pub struct Seekable;
impl Seekable {
    pub fn reader(&self, _: &MemberName) -> Result<MemberReader> {
        unimplemented!()
    }
    pub fn read_range(&self, _: &MemberName, _: u64, _: &mut [u8]) -> Result<()> {
        Ok(())
    }
}
pub struct MemberReader;
impl Read for MemberReader {
    fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
        Ok(0)
    }
}
pub struct Stream;
impl Stream {
    pub fn next_member(&mut self) -> Result<Option<StreamMember<'_>>> {
        Ok(None)
    }
}
pub struct StreamMember<'a>(&'a ());
pub enum MemberKind {
    File,
    Link(MemberName),
    Other,
}
impl StreamMember<'_> {
    pub fn name(&self) -> &MemberName {
        unimplemented!()
    }
    pub fn kind(&self) -> &MemberKind {
        unimplemented!()
    }
    pub fn size_bytes(&self) -> u64 {
        0
    }
    pub fn peek(&mut self, _: usize) -> Result<&[u8]> {
        Ok(&[])
    }
}
impl Read for StreamMember<'_> {
    fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
        Ok(0)
    }
}
impl BufRead for StreamMember<'_> {
    fn fill_buf(&mut self) -> std::io::Result<&[u8]> {
        Ok(&[])
    }
    fn consume(&mut self, _: usize) {}
}
#[derive(Default)]
pub struct KeptDocuments;
impl KeptDocuments {
    pub fn add_link(&mut self, _: MemberName, _: MemberName) -> Result<()> {
        Ok(())
    }
    pub fn add_file(&mut self, _: MemberName, _: u64) -> Result<()> {
        Ok(())
    }
    pub fn add_document(&mut self, _: &MemberName, _: Vec<u8>) -> Result<()> {
        Ok(())
    }
}
pub trait Members {}
impl Members for KeptDocuments {}
impl Members for Seekable {}
pub fn find_images(_: &dyn Members, _: &Limits) -> Result<Found> {
    unimplemented!()
}
pub struct Skipped {
    pub descriptor: String,
    pub reason: String,
}
pub struct Found {
    pub images: Vec<FoundImage>,
    pub skipped: Vec<Skipped>,
}
pub struct FoundImage {
    pub names: Vec<Reference>,
    pub target: Option<Descriptor>,
    pub documents: Vec<(Digest, Vec<u8>, String)>,
    pub manifests: Vec<FoundManifest>,
}
pub struct FoundManifest {
    pub platform: Platform,
    pub config: ConfigSummary,
    pub config_bytes: Vec<u8>,
    pub config_digest: Digest,
    pub manifest: Option<(Descriptor, Vec<u8>)>,
    pub layers: Vec<FoundLayer>,
}
impl FoundManifest {
    pub fn complete_config(&mut self, _: &[DiffId]) -> Result<()> {
        Ok(())
    }
}
pub struct FoundLayer {
    pub member: Option<MemberName>,
    pub descriptor: Option<Descriptor>,
    pub diff_id: Option<DiffId>,
    pub size: u64,
}
pub fn docker_manifest(_: (Digest, u64), _: &[(Digest, u64, Codec)]) -> Vec<u8> {
    vec![]
}
