//! The synchronisation primitives that the in-flight map stands on, in one place so that a model checker can
//! replace them.

pub(super) use dashmap::DashMap;
pub(super) use dashmap::mapref::entry::Entry;
pub(super) use std::sync::{Arc, Condvar, Mutex, MutexGuard};
