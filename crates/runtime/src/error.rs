//! What can go wrong before a component runs: starting the runtime, compiling, loading and linking.

use model::World;

/// The runtime could not be started.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The engine refused its settings or the machine lacks what it needs.
    #[error("the {} engine cannot start: {message}", world.as_str())]
    Engine {
        /// Which engine.
        world: World,
        /// What the engine said.
        message: String,
    },
    /// A capability could not be added to the linker.
    #[error("the interfaces of the {} engine cannot be set up: {message}", world.as_str())]
    Capability {
        /// Which engine.
        world: World,
        /// What the linker said.
        message: String,
    },
    /// The thread that ticks the engines could not be started.
    #[error("the epoch thread cannot start: {0}")]
    Ticker(std::io::Error),
}

/// A component could not be compiled.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// The compiler itself could not be set up.
    #[error("the {} compiler cannot start: {message}", world.as_str())]
    Engine {
        /// Which engine the code was meant for.
        world: World,
        /// What the engine said.
        message: String,
    },
    /// The bytes are not a component this platform accepts.
    #[error("the component is not accepted: {0}")]
    Invalid(String),
    /// The code is wanted by another engine than this program has.
    #[error("this program compiles for the {} engine {own}, and the code is wanted by another one", world.as_str())]
    Other {
        /// Which engine.
        world: World,
        /// The fingerprint of this program's.
        own: String,
    },
}

/// Compiled code could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The engine it was meant for is not available.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// The file was made by another version or other settings, or is not compiled code.
    #[error("the compiled code does not fit this engine: {0}; compile the component again")]
    Unfit(String),
    /// The component wants more memories, tables or memory from the beginning than a host gives any component.
    #[error("the component wants more memories, tables or memory than a component may have: {0}")]
    TooMuch(String),
}

/// A component could not be linked.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The component imports an interface nothing here offers.
    #[error("the component imports {interface}, which nothing on this host offers ({detail})")]
    Missing {
        /// The interface as the component names it.
        interface: String,
        /// The first function or resource of it that is missing.
        detail: String,
    },
    /// The component imports an interface that was not among its declared imports.
    #[error("the component imports {interface}, which its declared imports do not contain")]
    Undeclared {
        /// The interface as the component names it.
        interface: String,
    },
    /// The component imports an interface of another component that passes what cannot go from one to the other.
    #[error(
        "the component imports {interface} from another component, and {detail}, which cannot pass between components"
    )]
    NotForwarded {
        /// The interface as the component names it.
        interface: String,
        /// The function and what it passes.
        detail: String,
    },
    /// The component that answers an interface has another form of it.
    #[error("the component behind {interface} does not have it as it is imported: {detail}")]
    Disagree {
        /// The interface as the caller names it.
        interface: String,
        /// What differs.
        detail: String,
    },
    /// The interface is offered, but not with the functions or types the component expects.
    #[error("the component's imports do not fit what is offered: {0}")]
    Mismatch(String),
}
