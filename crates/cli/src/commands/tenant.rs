//! `tenant` and `tenant-settings`: who has an account here, what it may have, and the tokens that act for it.

use api::client::{ControlClient, Require};
use api::control::{TenantView, TokenRequest, TokenView};
use api::metrics::Kept;
use api::{Code, Problem};
use model::TenantName;
use model::tenant::{Quotas, TenantSettings};
use model::unit::ByteSize;
use serde::Serialize;

use super::wiring::change;
use crate::args::{QuotaFlags, Settings, SettingsCommand, TenantCommand, TokenCommand};
use crate::context::{Context, refused};
use crate::home::write_private;
use crate::output::{moment, table};

/// `sidereal tenant-settings`
///
/// # Errors
/// When the settings are refused.
pub async fn settings(context: &Context, command: SettingsCommand) -> anyhow::Result<()> {
    let client = context.client()?;
    match command {
        SettingsCommand::Show => show(context, &client, &context.tenant).await,
        SettingsCommand::List => list(context, &client).await,
        SettingsCommand::Set(changes) => set(context, &client, &context.tenant, &changes).await,
    }
}

/// `sidereal tenant`
///
/// # Errors
/// When the platform refuses, or cannot be reached.
pub async fn tenant(context: &Context, command: TenantCommand) -> anyhow::Result<()> {
    let client = context.client()?;
    match command {
        TenantCommand::Create { name, settings } => {
            let mut new = TenantSettings::default();
            apply(&settings, &mut new)?;
            let view = client.put_tenant(&name, &new, Require::Absent).await.map_err(|error| {
                let problem = error.problem();
                match problem.code {
                    Code::Conflict => anyhow::Error::new(
                        Problem::new(Code::Conflict, format!("there is a tenant `{name}`"))
                            .help("choose another name; `sidereal tenant set` changes it"),
                    ),
                    _ => problem.into(),
                }
            })?;
            context.out.result(&view, || {
                let next = format!("sidereal --tenant {name} tenant token create --role owner");
                format!("tenant {name} is there\nnext: `{next}`")
            });
            if view.settings.hosts.is_empty() {
                context.out.note(&format!(
                    "its apps may have whole names below `localhost`; `sidereal tenant set {name} --host HOST` gives it others"
                ));
            }
            let unbounded = view.settings.quotas.unbounded();
            if !unbounded.is_empty() {
                let flags: Vec<String> = unbounded.iter().map(|name| format!("--{}", name.replace('_', "-"))).collect();
                context.out.warn(&format!(
                    "nothing bounds {} of tenant {name}: it may take what all others need; `sidereal tenant set {name}` has {}",
                    unbounded.join(", "),
                    flags.join(", ")
                ));
            }
            Ok(())
        }
        TenantCommand::List => list(context, &client).await,
        TenantCommand::Show { name } => show(context, &client, name.as_ref().unwrap_or(&context.tenant)).await,
        TenantCommand::Set { name, settings } => {
            // `set` makes no tenant: a mistyped name would be one.
            client.tenant(&name).await.map_err(refused)?;
            set(context, &client, &name, &settings).await
        }
        TenantCommand::Suspend { name, reason } => suspend(context, &client, &name, Some(reason)).await,
        TenantCommand::Resume { name } => suspend(context, &client, &name, None).await,
        TenantCommand::Delete { name, confirm } => delete(context, &client, &name, confirm.as_ref()).await,
        TenantCommand::Token(command) => token(context, &client, command).await,
    }
}

async fn list(context: &Context, client: &ControlClient) -> anyhow::Result<()> {
    let tenants = client.tenants().await.map_err(refused)?;
    context.out.result(&tenants, || tenants.iter().map(|t| t.name.to_string()).collect::<Vec<_>>().join("\n"));
    Ok(())
}

/// A tenant, and what it keeps where it has a quota of that.
#[derive(Serialize)]
struct Shown<'v> {
    #[serde(flatten)]
    view: &'v TenantView,
    #[serde(skip_serializing_if = "Option::is_none")]
    kept: Option<Kept>,
}

async fn show(context: &Context, client: &ControlClient, name: &TenantName) -> anyhow::Result<()> {
    let view = client.tenant(name).await.map_err(refused)?;
    let kept = client.metrics(name).await.map_err(refused)?.kept;
    let shown = Shown { view: &view, kept };
    context.out.result(&shown, || {
        let mut text = serde_json::to_string_pretty(&view.settings).unwrap_or_default();
        if view.pending {
            text.push_str("\nnot everything that runs follows this yet");
        }
        if let Some(Kept { bytes, most, refused }) = kept {
            let (bytes, most) = (ByteSize(bytes), ByteSize(most));
            text.push_str(&format!("\nkeeps {bytes} of {most}; {refused} writes found no room"));
        }
        text
    });
    Ok(())
}

async fn set(context: &Context, client: &ControlClient, name: &TenantName, changes: &Settings) -> anyhow::Result<()> {
    let mut probe = TenantSettings::default();
    let lists = [&changes.distrust, &changes.unrevoke, &changes.deny_egress, &changes.no_hosts];
    if lists.iter().all(|list| list.is_empty()) {
        // What leaves the defaults alone may still be meant: only the absence of every flag is not.
        apply(changes, &mut probe)?;
        if probe == TenantSettings::default() && nothing(changes) {
            return Err(Problem::new(Code::RequestInvalid, "nothing to set: no flag was given")
                .help("for example `sidereal tenant-settings set --shards 2`; `--help` lists the flags")
                .into());
        }
    }
    let view = change(context, client, name, |settings| apply(changes, settings)).await?;
    context.out.result(&view, || format!("tenant {} is set", view.name));
    Ok(())
}

fn nothing(changes: &Settings) -> bool {
    let QuotaFlags {
        apps,
        components,
        requests_per_second,
        concurrent_requests,
        connections_per_second,
        log_rate,
        memory,
        cpu_weight,
        cpu_millis,
        store_bytes,
        artifact_bytes,
        record_bytes,
    } = &changes.quotas;
    changes.shards.is_none()
        && changes.ceilings.is_empty()
        && changes.allow_unsigned.is_none()
        && [apps, components, connections_per_second].iter().all(|value| value.is_none())
        && requests_per_second.is_none()
        && concurrent_requests.is_none()
        && log_rate.is_none()
        && memory.is_none()
        && cpu_weight.is_none()
        && cpu_millis.is_none()
        && store_bytes.is_none()
        && artifact_bytes.is_none()
        && record_bytes.is_none()
}

/// Makes the settings what the flags ask.
fn apply(changes: &Settings, settings: &mut TenantSettings) -> Result<(), Problem> {
    let Settings {
        trust,
        distrust,
        revoke,
        unrevoke,
        allow_egress,
        deny_egress,
        hosts,
        no_hosts,
        ceilings,
        shards,
        allow_unsigned,
        quotas,
    } = changes;
    all_there("trusted key", distrust, &settings.trust_anchors)?;
    all_there("revoked key, token or digest", unrevoke, &settings.revoked)?;
    all_there("granted range", deny_egress, &settings.egress)?;
    all_there("host", no_hosts, &settings.hosts)?;
    settings.trust_anchors.retain(|key| !distrust.contains(key) && !trust.contains(key));
    settings.trust_anchors.extend(trust.iter().cloned());
    settings.revoked.retain(|id| !revoke.contains(id) && !unrevoke.contains(id));
    settings.revoked.extend(revoke.iter().cloned());
    settings.egress.retain(|cidr| !allow_egress.contains(cidr) && !deny_egress.contains(cidr));
    settings.egress.extend(allow_egress.iter().cloned());
    settings.hosts.retain(|host| !hosts.contains(host) && !no_hosts.contains(host));
    settings.hosts.extend(hosts.iter().cloned());
    for ceiling in ceilings {
        (ceiling.limit.set)(&mut settings.ceilings, ceiling.value);
    }
    settings.shards = shards.unwrap_or(settings.shards);
    settings.allow_unsigned = allow_unsigned.unwrap_or(settings.allow_unsigned);
    let now = settings.quotas.clone();
    settings.quotas = Quotas {
        apps: quotas.apps.unwrap_or(now.apps),
        components: quotas.components.unwrap_or(now.components),
        requests_per_second: quotas.requests_per_second.map_or(now.requests_per_second, |quota| quota.0),
        concurrent_requests: quotas.concurrent_requests.map_or(now.concurrent_requests, |quota| quota.0),
        connections_per_second: quotas.connections_per_second.unwrap_or(now.connections_per_second),
        log_rate: quotas.log_rate.unwrap_or(now.log_rate),
        memory: quotas.memory.map_or(now.memory, |quota| quota.0),
        cpu_weight: quotas.cpu_weight.map_or(now.cpu_weight, |quota| quota.0),
        cpu_millis: quotas.cpu_millis.map_or(now.cpu_millis, |quota| quota.0),
        store_bytes: quotas.store_bytes.map_or(now.store_bytes, |most| most.0),
        artifact_bytes: quotas.artifact_bytes.unwrap_or(now.artifact_bytes),
        record_bytes: quotas.record_bytes.unwrap_or(now.record_bytes),
    };
    Ok(())
}

/// What is taken away must be there: a mistyped key that "was removed" would go on being trusted.
fn all_there(what: &str, asked: &[String], present: &[String]) -> Result<(), Problem> {
    match asked.iter().find(|entry| !present.contains(entry)) {
        Some(entry) => Err(Problem::new(Code::NotFound, format!("there is no {what} `{entry}`; nothing was changed"))
            .help("`sidereal tenant-settings show` lists what there is")),
        None => Ok(()),
    }
}

async fn suspend(
    context: &Context,
    client: &ControlClient,
    name: &TenantName,
    reason: Option<String>,
) -> anyhow::Result<()> {
    client.tenant(name).await.map_err(refused)?;
    let view: TenantView = change(context, client, name, |settings| {
        settings.suspended.clone_from(&reason);
        Ok(())
    })
    .await?;
    context.out.result(&view, || match &reason {
        Some(_) => format!("tenant {name} is suspended: its apps answer 503, and everything it has is kept"),
        None => format!("tenant {name} is served again"),
    });
    Ok(())
}

async fn delete(
    context: &Context,
    client: &ControlClient,
    name: &TenantName,
    confirm: Option<&TenantName>,
) -> anyhow::Result<()> {
    let view = client.tenant(name).await.map_err(refused)?;
    if confirm != Some(name) {
        let text =
            format!("deleting tenant `{name}` removes its apps, their data, its secrets and its tokens, for ever");
        return Err(Problem::new(Code::RequestInvalid, text)
            .help(format!("say its name once more: `sidereal tenant delete {name} --confirm {name}`"))
            .into());
    }
    let gone = client.delete_tenant(name, Require::At(view.etag)).await.map_err(refused)?;
    let data = serde_json::json!({ "tenant": name, "deleted": true, "purged": gone });
    context.out.result(&data, || match gone {
        true => format!("tenant {name} is deleted, and its data with it"),
        false => format!("tenant {name} is deleted; its data goes when the last calls have ended"),
    });
    Ok(())
}

async fn token(context: &Context, client: &ControlClient, command: TokenCommand) -> anyhow::Result<()> {
    let tenant = &context.tenant;
    match command {
        TokenCommand::Create { role, label, expires, out } => {
            let request = TokenRequest { role, label, expires_in: expires.map(|ms| ms.0.div_ceil(1000)) };
            let made = client.create_token(tenant, &request).await.map_err(refused)?;
            let Some(out) = out else {
                context.out.note("it is shown once; whoever has it acts for the tenant");
                context.out.result(&made, || made.token.clone());
                return Ok(());
            };
            if let Err(cause) = write_private(&out, made.token.as_bytes()) {
                // Nobody has it, so it must not live on.
                client.revoke_token(tenant, &made.view.id).await.map_err(refused)?;
                return Err(cause);
            }
            context.out.result(&made.view, || format!("token {} is in {}", made.view.id, out.display()));
        }
        TokenCommand::List => {
            let tokens = client.tokens(tenant).await.map_err(refused)?;
            context.out.result(&tokens, || match tokens.is_empty() {
                true => "no tokens; `sidereal tenant token create --role deployer` makes one".to_owned(),
                false => {
                    let rows = tokens.iter().map(row).collect();
                    table(&["ID", "ROLE", "LABEL", "MADE", "BY", "ENDS", "LAST USED"], rows)
                }
            });
        }
        TokenCommand::Revoke { id } => {
            let view = client.revoke_token(tenant, &id).await.map_err(refused)?;
            context.out.result(&view, || format!("token {id} is revoked"));
        }
    }
    Ok(())
}

fn row(token: &TokenView) -> Vec<String> {
    let moment = |ms: Option<u64>, none: &str| ms.map_or_else(|| none.to_owned(), moment);
    let ends = match token.revoked_ms {
        Some(_) => "revoked".to_owned(),
        None => moment(token.expires_ms, "never"),
    };
    vec![
        token.id.to_string(),
        token.role.to_string(),
        token.label.clone(),
        moment(Some(token.created_ms), ""),
        token.created_by.clone(),
        ends,
        moment(token.last_used_ms, "never"),
    ]
}
