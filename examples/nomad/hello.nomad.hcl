# A component that answers HTTP, on a port that Nomad chooses.
job "hello" {
  datacenters = ["dc1"]

  group "web" {
    network {
      port "http" {}
    }

    task "hello" {
      driver = "wasm"

      config {
        component = "local/hello.wasm"

        http {
          port = "http"
        }
      }

      artifact {
        source = "https://artifacts.example.com/hello.wasm"
        options {
          checksum = "sha256:0f343b0931126a20f133d67c2b018a3b5a5e6d4b5a5f8d0f2f0b9d0e4b0f8b3a"
        }
      }

      resources {
        cpu    = 200
        memory = 64
      }
    }
  }
}
