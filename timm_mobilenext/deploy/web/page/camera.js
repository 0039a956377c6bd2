// The camera, and a sentence for each way in which it can fail.

const WHY = {
  NotAllowedError: 'The browser does not allow the camera. Allow it for this page, then press the button again.',
  NotFoundError: 'This device has no camera.',
  NotReadableError: 'The camera is in use by another program.',
};

/** Show the camera in a <video>; `onEnd` is called when it goes away by itself. */
export async function start(video, onEnd) {
  if (!navigator.mediaDevices?.getUserMedia) {
    throw new Error(isSecureContext ? 'This browser does not let pages use a camera.' :
      'Browsers allow the camera only over https, or on a page of this device.');
  }
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({
      audio: false, video: {facingMode: 'environment', width: {ideal: 1280}, height: {ideal: 720}}});
  } catch (error) {
    throw new Error(WHY[error.name] ?? `The camera does not start: ${error.message}`);
  }
  video.srcObject = stream;
  stream.getVideoTracks()[0].addEventListener('ended', onEnd);
  await video.play();
}

/** Stop it, and turn its light off. */
export function stop(video) {
  video.srcObject?.getTracks().forEach(track => track.stop());
  video.srcObject = null;
}

/** Return the current frame of a video, or an image, as a PNG file. */
export async function photograph(element, name) {
  const canvas = new OffscreenCanvas(element.videoWidth ?? element.naturalWidth, element.videoHeight ?? element.naturalHeight);
  canvas.getContext('2d', {alpha: false}).drawImage(element, 0, 0, canvas.width, canvas.height);
  return new File([await canvas.convertToBlob()], name, {type: 'image/png'});
}
