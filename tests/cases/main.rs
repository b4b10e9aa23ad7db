//! The cases that an importer meets, end to end: what must import does so with one tree by every way in, and what is refused
//! or harmless touches nothing outside, leaves nothing visible, and the next import works.

#[path = "../support/mod.rs"]
mod support;

mod benign;
mod confined;
mod cut;
mod documents;
mod escape;
mod foreign;
mod house;
mod limits;
mod race;
mod streams;
mod tarball;
mod twice;
