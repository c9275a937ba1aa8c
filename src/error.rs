//! Errors as the command shows them, with their exit codes.

/// Why the command failed. Exit codes: 2 bad input or does not fit, 3 a deadlock or outputs beyond tolerance, 1 a defect of ours.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
pub enum Error {
    /// What the user gave can't be used.
    #[error("{0}")]
    Input(String),
    /// The simulated program did not end well.
    #[error("{0}")]
    Run(String),
    /// Outputs differ too much from the evaluator's.
    #[error("{0}")]
    Wrong(String),
    /// A defect of the tool.
    #[error("{0}\nThis is a defect of meshloom; please report it with the command that you ran.")]
    Internal(String),
}

impl Error {
    /// The process's exit code.
    pub fn code(&self) -> u8 {
        match self {
            Error::Input(_) => 2,
            Error::Run(_) | Error::Wrong(_) => 3,
            Error::Internal(_) => 1,
        }
    }

    /// Bad input from anything that can be shown.
    pub fn input(e: impl std::fmt::Display) -> Error {
        Error::Input(e.to_string())
    }
}

impl From<meshloom_compiler::CompileError> for Error {
    fn from(e: meshloom_compiler::CompileError) -> Error {
        match e {
            meshloom_compiler::CompileError::Invalid(_) => Error::Internal(e.to_string()),
            _ => Error::Input(e.to_string()),
        }
    }
}

impl From<meshloom_simulator::engine::RunError> for Error {
    fn from(e: meshloom_simulator::engine::RunError) -> Error {
        Error::Run(e.to_string())
    }
}
