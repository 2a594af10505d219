# The counter of examples/counter, on a port that Nomad chooses, its keys kept with the allocation. Its folder is served by
# `python3 -m http.server --bind 127.0.0.1 --directory examples/counter 8000`, on the client.
job "hello" {
  datacenters = ["dc1"]

  group "web" {
    network {
      port "http" {}
    }

    task "hello" {
      driver = "wasm"

      config {
        component = "local/counter.wasm"

        http {
          port = "http"
        }

        link "wasi:keyvalue" {
          provider = "embedded"
        }
      }

      artifact {
        source = "http://127.0.0.1:8000/counter.wasm"
        options {
          checksum = "sha256:80c33060c2531f3698f5ead93ab668282f6998d71ea22115f26bec336f44bc19"
        }
      }

      resources {
        cpu    = 200
        memory = 64
      }
    }
  }
}
