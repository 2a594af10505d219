# The counter of examples/counter and its Redis, side by side in one group: the link goes to the port that Nomad gave the group for
# Redis, by the address that Nomad says. Nothing has to be granted for that in the plugin's configuration.
job "counter" {
  datacenters = ["dc1"]

  group "web" {
    network {
      port "http" {}
      port "redis" {}
    }

    # There before the counter, and for as long.
    task "redis" {
      driver = "exec"

      lifecycle {
        hook    = "prestart"
        sidecar = true
      }

      # It has no password: whoever reaches the port may use it.
      config {
        command = "/usr/bin/redis-server"
        args = [
          "--bind", "${NOMAD_IP_redis}", "--port", "${NOMAD_PORT_redis}", "--protected-mode", "no", "--save", "",
        ]
      }

      resources {
        cpu    = 100
        memory = 64
      }
    }

    task "counter" {
      driver = "wasm"

      config {
        component = "local/counter.wasm"

        http {
          port = "http"
        }

        link "wasi:keyvalue" {
          provider = "redis"
          url      = "redis://${NOMAD_ADDR_redis}"
        }
      }

      artifact {
        source = "https://artifacts.example.com/counter.wasm"
      }

      resources {
        cpu    = 200
        memory = 64
      }
    }
  }
}
