# Added to the configuration of every Nomad client that is to run components. Every field has a default that works; this one
# lets unsigned components run, for a first try. See docs/nomad.md for the others.
plugin "nomad-driver-wasm" {
  config { allow_unsigned = true }
}
