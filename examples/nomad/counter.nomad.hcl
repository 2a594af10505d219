# The counter of examples/counter, from an OCI registry, its keys in a Redis of the network; the password comes from Vault or a
# Nomad variable by a template, and reaches only the link that needs it. The plugin's configuration has to let tasks connect to it:
# egress = ["10.1.0.0/16:6379"].
job "counter" {
  datacenters = ["dc1"]

  group "web" {
    network {
      port "http" {
        static = 8080
      }
    }

    task "counter" {
      driver = "wasm"

      config {
        component = "registry.example.com/shop/counter@sha256:0f343b0931126a20f133d67c2b018a3b5a5e6d4b5a5f8d0f2f0b9d0e4b0f8b3a"

        http {
          port = "http"
        }

        link "wasi:keyvalue" {
          provider = "redis"
          url      = "redis://${NOMAD_META_redis}"

          secret_files = {
            password = "secrets/redis"
          }
        }

        settings = {
          greeting = "hello"
        }

        # More than a call has otherwise.
        limits = {
          cpu = "1s"
        }

        env         = ["NOMAD_ALLOC_ID"]
        allow_hosts = ["https://api.example.com"]
      }

      template {
        destination = "secrets/redis"
        data        = "{{ with nomadVar \"nomad/jobs/counter\" }}{{ .password }}{{ end }}"
      }

      meta {
        redis = "10.1.0.5:6379"
      }
    }
  }
}
