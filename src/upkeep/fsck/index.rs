//! `index.json` against the database: others may read it, and nobody else may write it.

use super::Check;
use super::report::{ProblemKind, ProblemState};
use crate::error::Result;
use crate::store::IndexState;

impl Check<'_> {
    pub(super) fn index(&self) -> Result<()> {
        let state = self.store.index_state()?;
        let made_anew = (self.store.index_found_foreign(), self.store.index_found_damaged());
        let (kind, message) = match (state, made_anew) {
            (IndexState::Ours, (true, _)) => {
                (ProblemKind::IndexForeign, "someone else had written it; it has been made anew")
            }
            (IndexState::Ours, (_, true)) => {
                (ProblemKind::IndexDamaged, "it was missing, or cut short; it has been made anew")
            }
            (IndexState::Ours, _) => return Ok(()),
            // Whoever changed the image list is about to write it.
            (IndexState::Behind, _) => return Ok(()),
            (IndexState::Foreign, _) => (
                ProblemKind::IndexForeign,
                "someone else has written it: it does not say what the database says",
            ),
        };
        let state = match (state, self.options.repair) {
            (IndexState::Ours, _) => ProblemState::Repaired,
            (_, false) => ProblemState::Found,
            (_, true) => {
                self.store.rewrite_index()?;
                ProblemState::Repaired
            }
        };
        self.problem(kind, "index.json".into(), message.into(), Vec::new(), state);
        Ok(())
    }
}
