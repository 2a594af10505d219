//! Databases of the node's apps: which one is asked, and what. What is answered is the model's own.

use model::ProviderName;
use model::sql::Call;
use serde::{Deserialize, Serialize};

/// One call to the database of one provider of an app.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SqlRequest {
    /// The provider of the app: two of them share nothing.
    pub provider: ProviderName,
    /// What.
    pub call: Call,
}
