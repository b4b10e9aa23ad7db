//! `--verify-source`: what the store has already is read from the archive and hashed all the same.

use super::context::Context;
use super::intake::CHUNK_BYTES;
use super::layers::Layer;
use crate::archive::{MemberName, Seekable};
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::io::digesting::Digester;
use crate::oci::Digest;
use crate::progress::Outcome;
use crate::trace;
use rayon::prelude::*;
use std::io::Read;
use tracing::Span;

/// Checks the members of layers that were not read by this import, several at once.
pub(crate) fn verify_members(context: &Context<'_>, archive: &Seekable, layers: &[Layer]) -> Result<()> {
    let unread = |layer: &&Layer| layer.blob != Some(Outcome::New);
    let members: Vec<_> =
        layers.iter().filter(unread).filter_map(|layer| layer.member.as_ref().zip(layer.digest)).collect();
    let parent = Span::current();
    context.pool.install(|| {
        members.par_iter().try_for_each(|(member, digest)| {
            let _inside = parent.enter();
            let span = trace::stage!("verify", digest = trace::display(digest));
            trace::within(span, |_| verify(context, archive, member, digest))
                .doing(|| format!("cannot verify {member}"))
        })
    })
}

fn verify(context: &Context<'_>, archive: &Seekable, member: &MemberName, expected: &Digest) -> Result<()> {
    let mut reader = archive.reader(member)?;
    let mut digester = Digester::new(expected.algorithm());
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        context.cancel.check()?;
        match reader.read(&mut chunk)? {
            0 => break,
            count => digester.update(&chunk[..count]),
        }
    }
    let actual = digester.finish();
    if actual == *expected {
        return Ok(());
    }
    let message = format!("its bytes have the digest {actual}");
    Err(Error::new(ErrorKind::DigestMismatch, message).with_mismatch(expected, actual))
}
