//! A job file with one task, of which tests say only what is theirs.

use std::net::SocketAddr;

/// A job with one group, `group`, and one task, `task`.
#[derive(Debug, Clone)]
pub struct Job {
    kind: &'static str,
    client: &'static str,
    artifact: String,
    parts: [String; 4],
    network: Option<String>,
    restarts: u32,
    memory: u32,
}

impl Job {
    fn new(kind: &'static str, artifact: &str) -> Self {
        let config = "component = \"local/app.wasm\"\n".to_owned();
        let parts = [String::new(), String::new(), String::new(), config];
        Self { kind, client: "main", artifact: artifact.to_owned(), parts, network: None, restarts: 0, memory: 64 }
    }

    /// A service of this guest, at the port `http`.
    pub fn service(guest: &str) -> Self {
        Self::new("service", guest).network("port \"http\" {}").config("http {\n port = \"http\"\n}")
    }

    /// A program of this guest with these arguments.
    pub fn batch(guest: &str, args: &[&str]) -> Self {
        Self::new("batch", guest).config(&format!("args = {args:?}"))
    }

    pub fn kind(self, kind: &'static str) -> Self {
        Self { kind, ..self }
    }

    /// The network of its group.
    pub fn network(self, network: &str) -> Self {
        Self { network: Some(network.to_owned()), ..self }
    }

    /// On which client.
    pub fn on(self, client: &'static str) -> Self {
        Self { client, ..self }
    }

    pub fn restarts(self, restarts: u32) -> Self {
        Self { restarts, ..self }
    }

    fn more(mut self, at: usize, text: &str) -> Self {
        self.parts[at].push_str(text);
        self.parts[at].push('\n');
        self
    }

    /// More of the job.
    pub fn job(self, text: &str) -> Self {
        self.more(0, text)
    }

    /// More of its group.
    pub fn group(self, text: &str) -> Self {
        self.more(1, text)
    }

    /// More of its task.
    pub fn task(self, text: &str) -> Self {
        self.more(2, text)
    }

    /// More of the task's configuration.
    pub fn config(self, text: &str) -> Self {
        self.more(3, text)
    }

    /// Another component than the one that the artifact brings.
    pub fn component(mut self, component: &str) -> Self {
        self.parts[3] = self.parts[3].replacen("local/app.wasm", component, 1);
        self
    }

    pub fn text(&self, name: &str, artifacts: SocketAddr) -> String {
        let Self { kind, client, artifact, parts: [job, group, task, config], network, restarts, memory } = self;
        let network = network.as_ref().map_or_else(String::new, |network| format!("network {{\n {network}\n}}"));
        let reschedule = match *kind {
            "system" => "",
            _ => "reschedule {\n attempts = 0\n unlimited = false\n}",
        };
        format!(
            r#"job "{name}" {{
                datacenters = ["{client}"]
                type        = "{kind}"
                {job}
                group "group" {{
                    {reschedule}
                    restart {{
                        attempts = {restarts}
                        interval = "10m"
                        delay    = "1s"
                        mode     = "fail"
                    }}
                    {network}
                    {group}
                    task "task" {{
                        driver = "wasm"
                        config {{
                            {config}
                        }}
                        artifact {{
                            source = "http://{artifacts}/{artifact}/app.wasm"
                        }}
                        {task}
                        resources {{
                            cpu    = 50
                            memory = {memory}
                        }}
                    }}
                }}
            }}"#
        )
    }
}
