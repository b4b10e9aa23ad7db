//! stub
#![allow(missing_docs)]
use crate::{error::Result, io::tar::TarInput, tree::*, limits::Limits, parallel::Cancel};
pub struct ApplyOptions { pub limits: Limits, pub form: WhiteoutForm, pub ownership: Ownership, pub umask_is_zero: bool }
impl Default for ApplyOptions { fn default()->Self{unimplemented!()} }
pub enum Ownership { Keep, Ignore }
pub struct Applied { pub record: TreeRecord, pub notices: Vec<String> }
pub fn apply<R: TarInput>(_i: R, _fs: rustix::fd::BorrowedFd<'_>, _o: &ApplyOptions, _c: &Cancel, _a: &mut dyn FnMut(u64)) -> Result<(Applied, R)> { unimplemented!() }
pub fn use_private_umask() {}
