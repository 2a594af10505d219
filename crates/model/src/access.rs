//! Who may do what through the API: roles within a tenant, and the tokens that carry them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::name::TenantName;

/// What a token may do within its tenant. Each may do what those before it may. The operator is above all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Reads: apps, logs, events, counters; the names of secrets.
    Viewer,
    /// Deploys, links, deletes apps, sets secrets and configs, calls components.
    Deployer,
    /// Makes and revokes tokens, decides whom the tenant trusts, reads its audit log.
    Owner,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 3] = [Self::Viewer, Self::Deployer, Self::Owner];

    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Deployer => "deployer",
            Self::Owner => "owner",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|role| role.as_str() == text);
        found.ok_or_else(|| "expected viewer, deployer or owner".to_owned())
    }
}

/// Characters of a token's id.
const ID: usize = 16;
/// Characters of a token's secret: 256 bits in base 32.
const SECRET: usize = 52;
/// What every token begins with, so that a search for leaked secrets finds it.
const PREFIX: &str = "sidereal";

/// The public part of a token: names it in lists and in the audit log, and is never used again.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TokenId(std::sync::Arc<str>);

/// The text is no token's id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a token's id is {ID} characters of a-z and 2-7")]
pub struct TokenIdError;

fn base32(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_lowercase() || (b'2'..=b'7').contains(&byte))
}

impl FromStr for TokenId {
    type Err = TokenIdError;
    fn from_str(text: &str) -> Result<Self, TokenIdError> {
        if text.len() == ID && base32(text) { Ok(Self(text.into())) } else { Err(TokenIdError) }
    }
}

impl TryFrom<String> for TokenId {
    type Error = TokenIdError;
    fn try_from(text: String) -> Result<Self, TokenIdError> {
        text.parse()
    }
}

impl From<TokenId> for String {
    fn from(id: TokenId) -> String {
        id.0.as_ref().to_owned()
    }
}

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

crate::schema::text!(TokenId, "^[a-z2-7]{16}$");

/// A token as it is sent: `sidereal.<tenant>.<id>.<secret>`. The tenant and the id say where to look; only the secret
/// proves anything. Never printed by accident: it has no `Display`, and `Debug` leaves the secret out.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// Whose.
    pub tenant: TenantName,
    /// Which.
    pub id: TokenId,
    secret: String,
}

impl Token {
    /// A token of fresh random bytes.
    pub fn from_entropy(tenant: TenantName, id: [u8; 10], secret: [u8; 32]) -> Self {
        let encoding = data_encoding::BASE32_NOPAD;
        let id = TokenId(encoding.encode(&id).to_ascii_lowercase().into());
        Self { tenant, id, secret: encoding.encode(&secret).to_ascii_lowercase() }
    }

    /// Reads what was sent; `None` where it is no token of a tenant.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('.');
        let (Some(PREFIX), Some(tenant), Some(id), Some(secret), None) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return None;
        };
        let secret = (secret.len() == SECRET && base32(secret)).then(|| secret.to_owned())?;
        Some(Self { tenant: tenant.parse().ok()?, id: id.parse().ok()?, secret })
    }

    /// The whole text, for the one answer that shows it and for the request that sends it.
    pub fn reveal(&self) -> String {
        format!("{PREFIX}.{}.{}.{}", self.tenant, self.id, self.secret)
    }

    /// The secret alone, to be hashed.
    pub fn secret(&self) -> &str {
        &self.secret
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({}.{})", self.tenant, self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_as_it_was_made_and_nothing_else_is_one() {
        let token = Token::from_entropy("acme".parse().unwrap(), [7; 10], [200; 32]);
        let text = token.reveal();
        assert_eq!(Token::parse(&text).unwrap(), token);
        assert!(!format!("{token:?}").contains(token.secret()));
        let secret = token.secret();
        for bad in [
            String::new(),
            text.to_uppercase(),
            format!("{text}."),
            format!("{text} "),
            format!("{text}\0"),
            format!("x{text}"),
            text.replace("acme", "ac me"),
            text.replace("acme", "*"),
            text.replace("acme", ".."),
            text.replace("acme", "%61cme"),
            text.replace("acme.", ""),
            text.replace(secret, &secret[1..]),
            text.replace(secret, &secret.replace(&secret[..1], "é")),
        ] {
            assert!(Token::parse(&bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn roles_are_in_order_and_read_as_written() {
        assert!(Role::Viewer < Role::Deployer && Role::Deployer < Role::Owner);
        for role in Role::ALL {
            assert_eq!(role.to_string().parse(), Ok(role));
            assert_eq!(serde_json::to_string(&role).unwrap(), format!("\"{role}\""));
        }
        assert!("admin".parse::<Role>().is_err() && "Owner".parse::<Role>().is_err());
    }
}
