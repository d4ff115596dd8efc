//! What each operation does on this engine: read, call the service, answer.

use crate::{
    api::{Call, Edge, Operation, Success},
    services::{
        authenticate::{Bearer, authenticate},
        limits::admit,
        login::login,
        logout::logout,
        problem::Problem,
        profile::update_profile,
        ready::ready,
        refresh::{Refresh, refresh},
        register::register,
        resend_otp::resend_otp,
        verify_otp::verify_otp,
        verify_token::verify_token,
    },
};

use super::ports::AsyncPorts;

type Outcome = Result<Success, Problem>;

/// Counts the request against its limits, recognises its bearer where one is needed, and does it.
pub async fn handle(ports: &AsyncPorts, edge: &Edge, call: &Call, operation: Operation) -> Outcome {
    let class = operation.class();
    if !operation.needs_bearer() {
        // A refresh is counted where it is known whose token it shows.
        if operation != Operation::RefreshToken {
            admit(ports, class, &call.caller, None).await?;
        }
        return open(ports, edge, call, operation).await;
    }
    let bearer = authenticate(ports, call.bearer()).await?;
    admit(ports, class, &call.caller, Some(bearer.user.id)).await?;
    guarded(ports, edge, call, operation, &bearer).await
}

async fn open(ports: &AsyncPorts, edge: &Edge, call: &Call, operation: Operation) -> Outcome {
    match operation {
        Operation::Register => Ok(Success::registered(&register(ports, &call.caller, call.read()?).await?)),
        Operation::VerifyOtp => {
            let signed_in = verify_otp(ports, &call.caller, call.read()?).await?;
            Ok(Success::signed_in(edge, "Your account is verified.", &signed_in))
        }
        Operation::ResendOtp => {
            resend_otp(ports, &call.caller, call.read()?).await?;
            Ok(Success::code_sent())
        }
        Operation::Login => {
            let signed_in = login(ports, &call.caller, call.read()?).await?;
            Ok(Success::signed_in(edge, "Login successful.", &signed_in))
        }
        Operation::RefreshToken => {
            let body = call.read::<Refresh>()?.refresh.map(|token| token.0).filter(|token| !token.is_empty());
            let token = match &body {
                Some(token) => Some(token.as_str()),
                None => call.refresh_cookie(edge)?,
            };
            Ok(Success::refreshed(edge, &refresh(ports, &call.caller, token).await?))
        }
        Operation::VerifyToken => {
            verify_token(ports, call.read()?).await?;
            Ok(Success::token_valid())
        }
        Operation::Live => Ok(Success::live()),
        Operation::Ready => Success::ready(&ready(ports).await),
        Operation::Logout | Operation::Me | Operation::UpdateMe => Err(Problem::server_error()),
    }
}

async fn guarded(ports: &AsyncPorts, edge: &Edge, call: &Call, operation: Operation, bearer: &Bearer) -> Outcome {
    match operation {
        Operation::Logout => {
            logout(ports, &call.caller, bearer, call.read()?).await?;
            Ok(Success::logged_out(edge))
        }
        Operation::Me => Ok(Success::profile("Your profile.", &bearer.user)),
        Operation::UpdateMe => {
            let user = update_profile(ports, &call.caller, bearer, call.read()?).await?;
            Ok(Success::profile("Your profile was updated.", &user))
        }
        _ => Err(Problem::server_error()),
    }
}
