//! Who we are to a NATS server. The values arrive from whoever keeps secrets; they are never printed, and wiped.

use std::fmt;

use data_encoding::BASE64URL_NOPAD;
use nkeys::KeyPair;
use zeroize::Zeroizing;

use super::error::NatsError;
use crate::secrets;

/// How a client proves who it is.
#[derive(Clone)]
pub enum Credentials {
    /// User and password.
    User {
        /// The user.
        user: String,
        /// The password.
        password: Zeroizing<String>,
    },
    /// One token.
    Token(Zeroizing<String>),
    /// A key the server knows: its seed (`SU…`) signs the server's nonce.
    Key {
        /// The seed.
        seed: Zeroizing<String>,
    },
    /// A user's JWT and the seed of the key it names.
    Jwt {
        /// The JWT.
        jwt: Zeroizing<String>,
        /// The seed.
        seed: Zeroizing<String>,
    },
}

/// Where the credentials come from.
#[derive(Debug, Clone)]
pub enum Login {
    /// The server asks for none.
    Nobody,
    /// They are always the same.
    Fixed(Credentials),
    /// The secrets of a provider's settings, revealed for each connection: one that was set anew counts from the next
    /// connection on, and a server ends a connection whose credentials it takes no longer.
    Secrets {
        /// The user's name, where it is no secret.
        username: Option<String>,
        /// `username`, `password`, `token`, `nkey`, `credentials`.
        secrets: secrets::Credentials,
    },
}

impl Login {
    /// What to show the server now.
    pub(super) async fn now(&self) -> Result<Option<Credentials>, NatsError> {
        let (username, secrets) = match self {
            Self::Nobody => return Ok(None),
            Self::Fixed(credentials) => return Ok(Some(credentials.clone())),
            Self::Secrets { username, secrets } => (username, secrets),
        };
        let unlocked = secrets.all().await?;
        let text = |setting| Ok::<_, NatsError>(unlocked.text(setting)?.map(|text| Zeroizing::new(text.to_owned())));
        if let Some(password) = text("password")? {
            let user = text("username")?.map(|user| user.to_string()).or_else(|| username.clone());
            return Ok(Some(Credentials::User { user: user.unwrap_or_default(), password }));
        }
        if let Some(token) = text("token")? {
            return Ok(Some(Credentials::Token(token)));
        }
        if let Some(seed) = text("nkey")? {
            return Ok(Some(Credentials::Key { seed }));
        }
        let file = text("credentials")?.map(|file| Credentials::from_file(&file));
        file.transpose().map_err(|cause| NatsError::Denied(cause.to_string()))
    }
}

/// A field of `CONNECT`.
pub(super) type Field = (&'static str, Zeroizing<String>);

/// The text of a credentials file is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CredentialsError {
    /// Not both blocks.
    #[error("these are not NATS credentials: a JWT and a seed, each between its `-----BEGIN` and `-----END` lines")]
    Blocks,
    /// The seed is broken.
    #[error("the seed of the NATS credentials is not one (`SU…`)")]
    Seed,
    /// The server asked for no signature.
    #[error("the NATS server sends no nonce to sign: it does not take keys or JWTs")]
    NoNonce,
}

impl Credentials {
    /// Reads a credentials file as `nsc` writes it: a JWT and a seed in two decorated blocks.
    ///
    /// # Errors
    /// [`CredentialsError`] where it is none.
    pub fn from_file(text: &str) -> Result<Self, CredentialsError> {
        let jwt = Zeroizing::new(block(text, "JWT").ok_or(CredentialsError::Blocks)?);
        let seed = Zeroizing::new(block(text, "SEED").ok_or(CredentialsError::Blocks)?);
        KeyPair::from_seed(&seed).map_err(|_| CredentialsError::Seed)?;
        Ok(Self::Jwt { jwt, seed })
    }

    /// The fields of `CONNECT` that prove it; wiped.
    pub(super) fn fields(&self, nonce: Option<&str>) -> Result<Vec<Field>, CredentialsError> {
        let open = |text: &str| Zeroizing::new(text.to_owned());
        Ok(match self {
            Self::User { user, password } => vec![("user", open(user)), ("pass", password.clone())],
            Self::Token(token) => vec![("auth_token", token.clone())],
            Self::Key { seed } => {
                let (key, sig) = sign(seed, nonce)?;
                vec![("nkey", key.into()), ("sig", sig.into())]
            }
            Self::Jwt { jwt, seed } => vec![("jwt", jwt.clone()), ("sig", sign(seed, nonce)?.1.into())],
        })
    }
}

/// The public key and its signature over the nonce.
fn sign(seed: &str, nonce: Option<&str>) -> Result<(String, String), CredentialsError> {
    let nonce = nonce.ok_or(CredentialsError::NoNonce)?;
    let key = KeyPair::from_seed(seed.trim()).map_err(|_| CredentialsError::Seed)?;
    let signature = key.sign(nonce.as_bytes()).map_err(|_| CredentialsError::Seed)?;
    Ok((key.public_key(), BASE64URL_NOPAD.encode(&signature)))
}

/// The first line between the `BEGIN` and `END` lines that name `what`.
fn block(text: &str, what: &str) -> Option<String> {
    let mut lines = text.lines().map(str::trim).skip_while(|line| !(line.contains("BEGIN") && line.contains(what)));
    lines.next()?;
    let line = lines.find(|line| !line.is_empty())?;
    (!line.starts_with('-')).then(|| line.to_owned())
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::User { .. } => "User(…)",
            Self::Token(_) => "Token(…)",
            Self::Key { .. } => "Key(…)",
            Self::Jwt { .. } => "Jwt(…)",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credentials_file_is_read_and_signs() {
        let key = KeyPair::new_user();
        let seed = key.seed().unwrap();
        let file = format!(
            "-----BEGIN NATS USER JWT-----\neyJ0.e.s\n------END NATS USER JWT------\n\nKeep it.\n\n-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        );
        let credentials = Credentials::from_file(&file).unwrap();
        assert!(!format!("{credentials:?}").contains(&seed[..8]));
        let fields = credentials.fields(Some("nonce")).unwrap();
        assert_eq!(fields[0], ("jwt", "eyJ0.e.s".to_owned().into()));
        let signature = BASE64URL_NOPAD.decode(fields[1].1.as_bytes()).unwrap();
        assert!(key.verify(b"nonce", &signature).is_ok());
        assert_eq!(credentials.fields(None), Err(CredentialsError::NoNonce));
        for bad in ["", "-----BEGIN NATS USER JWT-----\n------END NATS USER JWT------", "eyJ"] {
            assert!(matches!(Credentials::from_file(bad), Err(CredentialsError::Blocks)), "{bad}");
        }
        assert!(matches!(Credentials::from_file(&file.replace(&seed, "SUX")), Err(CredentialsError::Seed)));
    }
}
