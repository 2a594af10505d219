//! `top`: what runs now, how fast and how well, over and over where somebody looks on.

use std::io::{IsTerminal as _, Write as _};

use api::client::EventQuery;
use api::control::event;
use api::metrics::TenantMetrics;
use api::{Code, Problem};
use futures::StreamExt as _;

use crate::args;
use crate::context::{Context, refused};
use crate::output::stdout;
use crate::top::Top;

/// `sidereal top`: ends with Ctrl-C; where nobody looks on, after one interval unless told to go on.
///
/// # Errors
/// When the platform cannot be reached, or stops.
pub async fn top(context: &Context, args: args::Top) -> anyhow::Result<()> {
    let client = context.client()?;
    if let Some(app) = &args.app {
        client.app(&context.tenant, app).await.map_err(refused)?;
    }
    let query =
        EventQuery { tenant: Some(context.tenant.clone()), app: args.app, after: None, metrics: Some(args.interval.0) };
    let mut events = client.events(query).await.map_err(refused)?;
    let mut screen = (!context.out.json() && std::io::stdout().is_terminal()).then(Screen::enter);
    let mut before: Option<TenantMetrics> = None;
    while let Some(event) = events.next().await {
        let event = event.map_err(refused)?;
        if event.kind != event::METRICS {
            continue;
        }
        let unreadable =
            |cause| Problem::new(Code::Internal, format!("the platform's counters are unreadable: {cause}"));
        let now: TenantMetrics = serde_json::from_value(event.data).map_err(unreadable)?;
        if let Some(before) = before.replace(now.clone()) {
            let top = Top::between(&before, &now);
            match &mut screen {
                Some(screen) => screen.show(&top),
                None => {
                    context.out.result(&top, || top.text(None));
                    if !args.follow {
                        return Ok(());
                    }
                    if !context.out.json() {
                        stdout("");
                    }
                }
            }
        }
    }
    Err(Problem::new(Code::Unreachable, "the platform has stopped").help("start it with `sidereal up`").into())
}

/// The terminal's other screen; what was there before comes back when this goes away.
struct Screen {
    color: bool,
}

impl Screen {
    fn enter() -> Self {
        write("\x1b[?1049h\x1b[?25l\x1b[2J");
        Self { color: anstream::AutoStream::choice(&std::io::stdout()) != anstream::ColorChoice::Never }
    }

    /// Writes over what is there, line by line, so that nothing flickers.
    fn show(&mut self, top: &Top) {
        let rows = console::Term::stdout().size_checked().map(|(rows, _)| usize::from(rows));
        let mut text = top.text(rows.map(|rows| rows.saturating_sub(1)));
        if !self.color {
            text = anstream::adapter::strip_str(&text).to_string();
        }
        write(&format!("\x1b[H{}\x1b[K\x1b[J", text.replace('\n', "\x1b[K\n")));
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        write("\x1b[?25h\x1b[?1049l");
    }
}

fn write(text: &str) {
    let mut out = std::io::stdout();
    if let Err(cause) = out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        tracing::debug!(%cause, "the terminal is gone");
    }
}
