//! `index.json` against the database: others may read it, and nobody else may write it.

use super::Check;
use super::report::{ProblemKind, ProblemState};
use crate::error::Result;
use crate::store::IndexState;

impl Check<'_> {
    pub(super) fn index(&self) -> Result<()> {
        let message = match self.store.index_state()? {
            IndexState::Ours => match self.store.index_found_foreign() {
                true => "someone else had written it; it has been made anew",
                false => return Ok(()),
            },
            // Whoever changed the image list is about to write it.
            IndexState::Behind => return Ok(()),
            IndexState::Foreign => "someone else has written it: it does not say what the database says",
        };
        let mended = self.store.index_state()? == IndexState::Ours;
        let state = match (mended, self.options.repair) {
            (true, _) => ProblemState::Repaired,
            (false, false) => ProblemState::Found,
            (false, true) => {
                self.store.rewrite_index()?;
                ProblemState::Repaired
            }
        };
        self.problem(ProblemKind::IndexForeign, "index.json".into(), message.into(), Vec::new(), state);
        Ok(())
    }
}
