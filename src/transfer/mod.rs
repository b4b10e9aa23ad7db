<<<<<<< HEAD
//! The verbs that move images: import, unpack, export, bundle.

mod audit;
mod claims;
mod context;
mod import;
mod intake;
mod layer_job;
mod layers;
mod options;
mod plan;
mod preview;
pub mod report;
mod stages;
mod stream;
mod verify;

pub use claims::Claims;
pub use import::{Resources, import, plan_import};
pub use options::ImportOptions;
pub use report::{ImportPlan, ImportReport};
=======
//! The verbs that move images in and out.

pub mod bundle;
mod users;
>>>>>>> part-f
