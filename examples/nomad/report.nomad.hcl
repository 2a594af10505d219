# A program (wasi:cli/run, or a core module of WASI 0.1) as a batch job: run once, with its exit code and its output.
job "report" {
  datacenters = ["dc1"]
  type        = "batch"

  group "report" {
    restart {
      attempts = 1
      mode     = "fail"
    }

    task "report" {
      driver = "wasm"

      config {
        component = "local/report.wasm"
        args      = ["--month", "${NOMAD_META_month}"]
        env       = ["NOMAD_ALLOC_ID"]

        # What it may read and write: nothing but this.
        folder "/local" {}
        folder "/alloc/data/report" {
          writable = true
        }
      }

      artifact {
        source = "https://artifacts.example.com/report.wasm"
        options {
          checksum = "sha256:0f343b0931126a20f133d67c2b018a3b5a5e6d4b5a5f8d0f2f0b9d0e4b0f8b3a"
        }
      }

      meta {
        month = "2026-11"
      }

      resources {
        cpu    = 500
        memory = 128
      }
    }
  }
}
