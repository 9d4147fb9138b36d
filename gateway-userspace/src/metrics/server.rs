//! The HTTP side. A client that is slow, or says nothing, is cut off; more clients than there are places for
//! wait in the queue of the kernel.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::collect::Respond;
use super::{Socket, page};

/// How many clients there can be at once.
const CLIENTS: usize = 16;
/// How long a client may take to say what it wants.
const ASKING: Duration = Duration::from_secs(2);
/// How long it may take until it has read the answer.
const WHOLE: Duration = Duration::from_secs(10);
/// The longest request.
const REQUEST_BYTES: usize = 16 << 10;
/// How often the counters are looked at in any case.
const LOOK: Duration = Duration::from_secs(15);
/// After a failure to accept: descriptors may be short.
const PAUSE: Duration = Duration::from_millis(100);

const PLAIN: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

/// Serves until the process ends.
pub(super) fn serve(socket: Socket, respond: impl Respond) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let served = runtime.and_then(|runtime| runtime.block_on(accept(socket, respond)));
    if let Err(error) = served {
        eprintln!("metrics are not served: {error}");
    }
}

async fn accept(socket: Socket, respond: impl Respond) -> std::io::Result<()> {
    let respond = Arc::new(Mutex::new(respond));
    tokio::spawn(look(Arc::clone(&respond)));
    match socket {
        Socket::Tcp(listener) => {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            accept_by(async || Ok(listener.accept().await?.0), respond).await
        }
        Socket::Unix(listener) => {
            let listener = tokio::net::UnixListener::from_std(listener)?;
            accept_by(async || Ok(listener.accept().await?.0), respond).await
        }
    }
}

async fn accept_by<S>(
    next: impl AsyncFn() -> std::io::Result<S>,
    respond: Arc<Mutex<impl Respond>>,
) -> std::io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let places = Arc::new(Semaphore::new(CLIENTS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return Ok(()) };
        let stream = match next().await {
            Ok(stream) => stream,
            Err(_) => {
                sleep(PAUSE).await;
                continue;
            }
        };
        let respond = Arc::clone(&respond);
        tokio::spawn(async move {
            let service = service_fn(|request: Request<Incoming>| {
                let mut respond = respond.lock().unwrap_or_else(PoisonError::into_inner);
                let answer = answer(request.method(), request.uri().path(), &mut *respond);
                async { Ok::<_, Infallible>(answer) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(ASKING)
                .keep_alive(false)
                .max_buf_size(REQUEST_BYTES)
                .serve_connection(TokioIo::new(stream), service);
            // What is wrong with a client is the client's concern.
            let _ = timeout(WHOLE, connection).await;
            drop(place);
        });
    }
}

/// Looks at the counters even if nobody asks, so that little is lost with a rule that goes.
async fn look(respond: Arc<Mutex<impl Respond>>) {
    let mut ticks = interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        // Whoever asks next is told what is wrong.
        let _ = respond.lock().unwrap_or_else(PoisonError::into_inner).metrics();
    }
}

fn answer(method: &Method, path: &str, respond: &mut impl Respond) -> Response<Full<Bytes>> {
    if ![Method::GET, Method::HEAD].contains(method) {
        let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD");
        answer.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return answer;
    }
    match path {
        "/metrics" => match respond.metrics() {
            Ok(metrics) => {
                let mut answer =
                    Response::new(Full::new(Bytes::copy_from_slice(metrics.as_bytes())));
                let kind = HeaderValue::from_static(page::CONTENT_TYPE);
                answer.headers_mut().insert(CONTENT_TYPE, kind);
                answer
            }
            Err(why) => text(StatusCode::INTERNAL_SERVER_ERROR, &why),
        },
        "/healthz" => probe(respond.healthy()),
        "/readyz" => probe(respond.ready()),
        _ => text(StatusCode::NOT_FOUND, "there are /metrics, /healthz and /readyz"),
    }
}

fn probe(result: Result<(), String>) -> Response<Full<Bytes>> {
    match result {
        Ok(()) => text(StatusCode::OK, "ok"),
        Err(why) => text(StatusCode::SERVICE_UNAVAILABLE, &why),
    }
}

/// One line.
fn text(status: StatusCode, line: &str) -> Response<Full<Bytes>> {
    let line = format!("{}\n", line.replace('\n', " "));
    let mut answer = Response::new(Full::new(Bytes::from(line)));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, PLAIN);
    answer
}
