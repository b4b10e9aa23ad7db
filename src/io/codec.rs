//! stub
use crate::{error::Result, parallel::Budget};
use std::io::{BufRead, Read};
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec { None, Gzip, Zstd, Xz, Bzip2 }
impl Codec { pub fn sniff(_: &[u8]) -> Codec { Codec::None } pub fn name(self)->&'static str {""} pub fn from_name(_:&str)->Option<Codec>{None} }
pub fn decoder<'a, R: BufRead + Send + 'a>(_c: Codec, input: R, _b: &Budget) -> Result<Box<dyn Read + Send + 'a>> { Ok(Box::new(input)) }
