# Added to the configuration of every Nomad client that is to run components. Every field has a default that works; this one
# trusts who signed examples/counter, for a first try. See docs/nomad.md for the others.
plugin "nomad-driver-wasm" {
  config { trust_anchors = ["AC3SA6BSSPUKQ67XM6IKRQUBDAJ3XG3V47JL5TTQ423AUXCUIIMER2JN"] }
}
