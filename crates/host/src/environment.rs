//! Variables that the components of this host find in their environment: named by whoever starts it, for a task whose scheduler
//! granted them. Their values are among the components' config, so none of them is in the environment of this process. Without a
//! word from there, there are none.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use api::run::VARIABLES_ENV;
use runtime::Environment;

use crate::HostError;

/// Settled before anything runs.
static GRANTED: OnceLock<Vec<String>> = OnceLock::new();

/// Grants what the environment names to every component of this process from now on.
///
/// # Errors
/// Where it cannot be read, or some were granted before.
pub fn grant() -> Result<(), HostError> {
    let Some(text) = std::env::var_os(VARIABLES_ENV) else { return Ok(()) };
    let named = text.to_str().and_then(|text| serde_json::from_str(text).ok()).ok_or(HostError::Variables)?;
    GRANTED.set(named).map_err(|_| HostError::Variables)
}

/// What of this config is granted.
pub(crate) fn granted(config: &BTreeMap<String, String>) -> Option<Environment> {
    GRANTED.get().map(|named| chosen(named, config))
}

fn chosen(named: &[String], config: &BTreeMap<String, String>) -> Environment {
    let variables = named.iter().filter_map(|name| config.get_key_value(name));
    Environment(variables.map(|(name, value)| (name.clone(), value.clone())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_named_of_the_config_is_in_the_environment() {
        let text = |text: &str| text.to_owned();
        let config = [("REGION", "eu"), ("greeting", "hi")].map(|(name, value)| (text(name), text(value))).into();
        assert_eq!(chosen(&[text("REGION"), text("ZONE")], &config), Environment(vec![(text("REGION"), text("eu"))]));
        assert_eq!(granted(&config), None, "nobody granted any");
    }
}
