//! What each operation does on this engine: read, call the service, answer.

use crate::{
    api::{Call, Edge, Handled, Operation, Success, docs, jwks},
    services::{
        authenticate::{Bearer, authenticate},
        change_mfa::{disable_mfa, mfa_state, replace_recovery_codes},
        change_password::change_password,
        confirm_reset::{ConfirmReset, ConfirmResetByLink, ConfirmResetByPhone, confirm_reset},
        enrol_totp::{begin_totp, confirm_totp},
        google::google,
        idempotency::{self, Asked, Begun},
        limits::admit,
        login::login,
        login_events::login_events,
        logout::logout,
        model::UserId,
        pages::PageQuery,
        problem::Problem,
        profile::update_profile,
        ready::ready,
        refresh::{Refresh, refresh},
        register::register,
        request_reset::request_reset,
        resend_otp::resend_otp,
        sessions::{revoke, revoke_others, sessions},
        verify_mfa::verify_mfa,
        verify_otp::verify_otp,
        verify_token::verify_token,
    },
};

use super::ports::AsyncPorts;

type Outcome = Result<Success, Problem>;

/// Counts the request against its limits, recognises its bearer where one is needed, and does it.
/// `parameters` are what stands in the path for the names in the route's.
pub async fn handle(
    ports: &AsyncPorts,
    edge: &Edge,
    call: &Call,
    operation: Operation,
    parameters: &[String],
) -> Handled {
    // A refresh is counted where it is known whose token it shows.
    if operation == Operation::RefreshToken {
        return Box::pin(refreshed(ports, edge, call)).await;
    }
    let bearer = match operation.needs_bearer() {
        false => None,
        true => match authenticate(ports, call.bearer(), operation.look()).await {
            Ok(bearer) => Some(bearer),
            Err(error) => return Handled::new(None, Err(error.into())),
        },
    };
    let user = bearer.as_ref().map(|bearer| bearer.user.id);
    let standing = match admit(ports, operation.class(), &call.caller, user).await {
        Ok(standing) => standing,
        Err(problem) => return Handled::new(None, Err(problem)),
    };
    let work = async || match &bearer {
        Some(bearer) => guarded(ports, edge, call, operation, parameters, bearer).await,
        None => open(ports, edge, call, operation, parameters).await,
    };
    // What is asked most often does without the room that the largest operation takes.
    let outcome = match (operation, &bearer) {
        (Operation::VerifyToken, _) => token_verified(ports, call).await,
        (Operation::Me, Some(bearer)) => own_profile(bearer),
        _ => Box::pin(once(ports, call, operation, user, work)).await,
    };
    Handled::new(standing, outcome)
}

async fn refreshed(ports: &AsyncPorts, edge: &Edge, call: &Call) -> Handled {
    let read = || {
        let body = call.read::<Refresh>()?.refresh.map(|token| token.0).filter(|token| !token.is_empty());
        match body {
            Some(token) => Ok(Some(token)),
            None => Ok(call.refresh_cookie(edge)?.map(str::to_owned)),
        }
    };
    match read() {
        Ok(token) => {
            let (standing, pair) = refresh(ports, &call.caller, token.as_deref()).await;
            Handled::new(standing, pair.map(|pair| Success::refreshed(edge, &pair)).map_err(Problem::from))
        }
        Err(problem) => Handled::new(None, Err(problem)),
    }
}

// Once for each idempotency key, where the operation takes one.
async fn once(
    ports: &AsyncPorts,
    call: &Call,
    operation: Operation,
    user: Option<UserId>,
    work: impl AsyncFnOnce() -> Outcome,
) -> Outcome {
    let given = call.idempotency_key().filter(|_| operation.takes_idempotency_key());
    let claim = match given {
        None => None,
        Some((key, body)) => {
            let asked = Asked { route: operation.word(), key, user, body };
            match idempotency::begin(ports, &call.caller, asked).await? {
                Begun::Fresh(claim) => Some(claim),
                Begun::Replay(kept) => return Ok(Success::replayed(kept)),
            }
        }
    };
    // In one place: a second one would take as much room again.
    let outcome = work().await;
    if let Some(claim) = claim {
        match outcome.as_ref().ok().and_then(Success::kept) {
            Some(kept) => idempotency::finish(ports, claim, &kept).await,
            None => idempotency::release(ports, claim).await,
        }
    }
    outcome
}

async fn open(ports: &AsyncPorts, edge: &Edge, call: &Call, operation: Operation, parameters: &[String]) -> Outcome {
    match operation {
        Operation::Register => Ok(Success::registered(&register(ports, &call.caller, call.read()?).await?)),
        Operation::VerifyOtp => {
            let entered = verify_otp(ports, &call.caller, call.read()?).await?;
            Ok(Success::entered(edge, "Your account is verified.", &entered))
        }
        Operation::ResendOtp => {
            resend_otp(ports, &call.caller, call.read()?).await?;
            Ok(Success::code_sent())
        }
        Operation::Login => {
            let entered = login(ports, &call.caller, call.read()?).await?;
            Ok(Success::entered(edge, "Login successful.", &entered))
        }
        Operation::VerifyMfa => {
            let signed_in = verify_mfa(ports, &call.caller, call.read()?).await?;
            Ok(Success::signed_in(edge, "Login successful.", &signed_in))
        }
        Operation::Google => {
            Ok(Success::entered_by_google(edge, &Box::pin(google(ports, &call.caller, call.read()?)).await?))
        }
        Operation::VerifyToken => token_verified(ports, call).await,
        Operation::RequestReset => {
            request_reset(ports, &call.caller, call.read()?).await?;
            Ok(Success::reset_requested())
        }
        Operation::ConfirmReset => {
            let reset = call.read::<ConfirmReset>()?.read(ports)?;
            confirm_reset(ports, &call.caller, reset).await?;
            Ok(Success::password_reset())
        }
        Operation::ConfirmResetByLink => {
            let [uidb64, token] = parameters else { return Err(Problem::server_error()) };
            let reset = call.read::<ConfirmResetByLink>()?.read(uidb64, token)?;
            confirm_reset(ports, &call.caller, reset).await?;
            Ok(Success::password_reset())
        }
        Operation::ConfirmResetByPhone => {
            let reset = call.read::<ConfirmResetByPhone>()?.read(ports)?;
            confirm_reset(ports, &call.caller, reset).await?;
            Ok(Success::password_reset())
        }
        Operation::JsonWebKeys => Ok(Success::document(jwks::document(&ports.keys))),
        Operation::OpenApi => docs::openapi(edge, call.version).map(Success::document),
        Operation::Docs => docs::page(edge, &call.path).map(Success::document),
        Operation::DocsFile => docs::file(edge, parameters).map(Success::document),
        Operation::Live => Ok(Success::live()),
        Operation::Ready => Success::ready(&ready(ports).await),
        _ => Err(Problem::server_error()),
    }
}

async fn token_verified(ports: &AsyncPorts, call: &Call) -> Outcome {
    verify_token(ports, call.read()?).await?;
    Ok(Success::token_valid())
}

fn own_profile(bearer: &Bearer) -> Outcome {
    Ok(Success::profile("Your profile.", &bearer.user))
}

async fn guarded(
    ports: &AsyncPorts,
    edge: &Edge,
    call: &Call,
    operation: Operation,
    parameters: &[String],
    bearer: &Bearer,
) -> Outcome {
    match operation {
        Operation::Logout => {
            logout(ports, &call.caller, bearer, call.read()?).await?;
            Ok(Success::logged_out(edge))
        }
        Operation::Me => own_profile(bearer),
        Operation::UpdateMe => {
            let user = update_profile(ports, &call.caller, bearer, call.read()?).await?;
            Ok(Success::profile("Your profile was updated.", &user))
        }
        Operation::ChangePassword => {
            let device = change_password(ports, &call.caller, bearer, call.read()?).await?;
            Ok(Success::password_changed(edge, &device))
        }
        Operation::Mfa => Ok(Success::mfa_state(&mfa_state(ports, bearer).await?)),
        Operation::BeginTotp => {
            let enrolment = begin_totp(ports, &call.caller, bearer, call.read()?).await?;
            Ok(Success::totp_begun(&enrolment))
        }
        Operation::ConfirmTotp => {
            let codes = confirm_totp(ports, &call.caller, bearer, call.read()?).await?;
            Ok(Success::mfa_enabled(&codes))
        }
        Operation::ReplaceRecoveryCodes => {
            let codes = replace_recovery_codes(ports, &call.caller, bearer, call.read()?).await?;
            Ok(Success::recovery_codes(&codes))
        }
        Operation::DisableMfa => {
            disable_mfa(ports, &call.caller, bearer, call.read()?).await?;
            Ok(Success::mfa_disabled())
        }
        Operation::Sessions => {
            let page = call.read_query::<PageQuery>()?.page()?;
            Ok(Success::sessions(&sessions(ports, bearer, page).await?, bearer.session.id))
        }
        Operation::RevokeSession => {
            let [id] = parameters else { return Err(Problem::server_error()) };
            revoke(ports, &call.caller, bearer, id).await?;
            Ok(Success::session_revoked())
        }
        Operation::RevokeOtherSessions => {
            Ok(Success::others_revoked(revoke_others(ports, &call.caller, bearer).await?))
        }
        Operation::LoginEvents => {
            let page = call.read_query::<PageQuery>()?.page()?;
            Ok(Success::login_events(&login_events(ports, bearer, page).await?))
        }
        _ => Err(Problem::server_error()),
    }
}
