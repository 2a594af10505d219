//! Builds the schema of a configuration block. The agent checks the block by it, and refuses what it does not name.

use crate::contracts::hashicorp::nomad::plugins::shared::hclspec::{
    Attr, Block, BlockList, BlockMap, Default, Literal, Object, Spec, spec,
};

/// The fields of a block, by name.
#[derive(Debug, Clone, std::default::Default)]
pub struct Fields(Object);

fn of(block: spec::Block) -> Spec {
    Spec { block: Some(block) }
}

impl Fields {
    /// None.
    pub fn new() -> Self {
        std::default::Default::default()
    }

    fn with(mut self, name: &str, block: spec::Block) -> Self {
        self.0.attributes.insert(name.to_owned(), of(block));
        self
    }

    fn attr(name: &str, kind: &str, required: bool) -> spec::Block {
        spec::Block::Attr(Attr { name: name.to_owned(), r#type: kind.to_owned(), required })
    }

    /// A text that must be there.
    #[must_use]
    pub fn text(self, name: &str) -> Self {
        self.with(name, Self::attr(name, "string", true))
    }

    /// A text that may be there.
    #[must_use]
    pub fn maybe_text(self, name: &str) -> Self {
        self.with(name, Self::attr(name, "string", false))
    }

    /// Texts, in order.
    #[must_use]
    pub fn texts(self, name: &str) -> Self {
        self.with(name, Self::attr(name, "list(string)", false))
    }

    /// Texts by name. Jobs hand such maps over as a list of maps, so the type has to be one.
    #[must_use]
    pub fn text_map(self, name: &str) -> Self {
        self.with(name, Self::attr(name, "list(map(string))", false))
    }

    /// Yes or no, with what an absent one means.
    #[must_use]
    pub fn flag(self, name: &str, default: bool) -> Self {
        let primary = Box::new(of(Self::attr(name, "bool", false)));
        let default = Box::new(of(spec::Block::Literal(Literal { value: default.to_string() })));
        self.with(name, spec::Block::Default(Box::new(Default { primary: Some(primary), default: Some(default) })))
    }

    /// A nested block, at most once.
    #[must_use]
    pub fn block(self, name: &str, fields: Fields) -> Self {
        let nested = Some(Box::new(fields.spec()));
        self.with(name, spec::Block::BlockValue(Box::new(Block { name: name.to_owned(), required: false, nested })))
    }

    /// Nested blocks that carry a label each: a map from label to block.
    #[must_use]
    pub fn labelled(self, name: &str, label: &str, fields: Fields) -> Self {
        let (nested, labels) = (Some(Box::new(fields.spec())), vec![label.to_owned()]);
        self.with(name, spec::Block::BlockMap(Box::new(BlockMap { name: name.to_owned(), labels, nested })))
    }

    /// Nested blocks, any number.
    #[must_use]
    pub fn blocks(self, name: &str, fields: Fields) -> Self {
        let nested = Some(Box::new(fields.spec()));
        let list = BlockList { name: name.to_owned(), min_items: 0, max_items: 0, nested };
        self.with(name, spec::Block::BlockList(Box::new(list)))
    }

    /// The schema.
    pub fn spec(self) -> Spec {
        of(spec::Block::Object(self.0))
    }
}
