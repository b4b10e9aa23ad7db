//! Where small documents are looked up: the same questions to an archive that can be read anywhere and to what was kept
//! of one that has passed.

use super::MemberName;
use crate::error::{Error, Result};
use std::collections::HashMap;

/// The longest chain of links from member to member. `docker save` links a layer to one earlier layer.
pub(super) const MAX_LINKS: usize = 16;

/// What is known of a member without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberStat {
    /// Its size.
    pub size: u64,
    /// The member that holds the bytes, once links have been followed.
    pub resolved: MemberName,
}

/// Members by name.
pub trait Members {
    /// The content of a member, `None` if there is none of that name. One of more than `limit` bytes is refused.
    fn document(&self, name: &MemberName, limit: u64) -> Result<Option<Vec<u8>>>;
    /// Size and place of a regular member; `None` if there is none, also where a link leads nowhere.
    fn stat(&self, name: &MemberName) -> Result<Option<MemberStat>>;
}

pub(super) fn too_large(name: &MemberName, size: u64, limit: u64) -> Error {
    Error::over("json_bytes", format!("{name} has {size} bytes, at most {limit} are read"))
}

pub(super) fn contradicted(name: &MemberName) -> Error {
    Error::malformed(format!("the archive holds two different members named {name}"))
}

/// The documents of a stream, kept as it passed, and what its other members were.
///
/// Members of one name must be identical; those that are not are an error once one of them is asked for.
#[derive(Debug, Default)]
pub struct KeptDocuments {
    members: HashMap<MemberName, Kept>,
}

#[derive(Debug)]
enum Kept {
    File { size: u64, bytes: Option<Vec<u8>> },
    Link(MemberName),
    Contradicted,
}

impl KeptDocuments {
    /// Notes a link to another member.
    pub fn add_link(&mut self, name: MemberName, target: MemberName) -> Result<()> {
        match self.members.get_mut(&name) {
            None => drop(self.members.insert(name, Kept::Link(target))),
            Some(Kept::Link(known)) if *known == target => {}
            Some(known) => *known = Kept::Contradicted,
        }
        Ok(())
    }

    /// Notes a regular member.
    pub fn add_file(&mut self, name: MemberName, size: u64) -> Result<()> {
        match self.members.get_mut(&name) {
            None => drop(self.members.insert(name, Kept::File { size, bytes: None })),
            Some(Kept::File { size: known, .. }) if *known == size => {}
            Some(known) => *known = Kept::Contradicted,
        }
        Ok(())
    }

    /// Keeps the content of a member that was noted before.
    pub fn add_document(&mut self, name: &MemberName, content: Vec<u8>) -> Result<()> {
        match self.members.get_mut(name) {
            Some(Kept::File { bytes: bytes @ None, .. }) => *bytes = Some(content),
            Some(Kept::File { bytes: Some(known), .. }) if *known == content => {}
            Some(known) => *known = Kept::Contradicted,
            None => drop(
                self.members
                    .insert(name.clone(), Kept::File { size: content.len() as u64, bytes: Some(content) }),
            ),
        }
        Ok(())
    }

    fn resolve<'a>(&'a self, name: &'a MemberName) -> Result<Option<(&'a MemberName, &'a Kept)>> {
        let mut at = name;
        for _ in 0..MAX_LINKS {
            match self.members.get(at) {
                None => return Ok(None),
                Some(Kept::Contradicted) => return Err(contradicted(at)),
                Some(Kept::Link(target)) => at = target,
                Some(file) => return Ok(Some((at, file))),
            }
        }
        Err(Error::malformed(format!("the links from {name} on have no end")))
    }
}

impl Members for KeptDocuments {
    fn document(&self, name: &MemberName, limit: u64) -> Result<Option<Vec<u8>>> {
        match self.resolve(name)? {
            Some((_, Kept::File { size, .. })) if *size > limit => Err(too_large(name, *size, limit)),
            Some((_, Kept::File { bytes: Some(bytes), .. })) => Ok(Some(bytes.clone())),
            Some(_) => Err(Error::malformed(format!("{name} is not JSON"))),
            None => Ok(None),
        }
    }

    fn stat(&self, name: &MemberName) -> Result<Option<MemberStat>> {
        Ok(self.resolve(name)?.and_then(|(resolved, kept)| match kept {
            Kept::File { size, .. } => Some(MemberStat { size: *size, resolved: resolved.clone() }),
            _ => None,
        }))
    }
}
