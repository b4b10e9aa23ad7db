//! The verbs that move images: import, unpack, export, bundle.

mod audit;
pub mod bundle;
pub mod catalogue;
mod claims;
mod context;
mod export;
mod held;
pub mod history;
mod idmapped;
mod import;
mod intake;
mod layer_job;
mod layers;
pub mod mounting;
pub mod options;
mod plan;
mod preview;
pub mod prewarm;
pub mod report;
mod stages;
mod stream;
pub mod unpack;
mod users;
pub mod verdict;
mod verify;
mod write_behind;

pub use audit::audited;
pub use claims::Claims;
pub use export::{ExportFormat, ExportReport, export};
pub use import::{Resources, import, plan_import};
pub use options::ImportOptions;
pub use report::{ImportPlan, ImportReport};
pub use unpack::{UnpackOptions, UnpackReport, unpack, unpack_image};
